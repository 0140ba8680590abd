//! What a stream that wraps another one delegates to it.

/// Implements writing for a type, by delegation to the stream in this field. If it is in no field of its own, there is
/// a method for a shared and one for an exclusive reference to it.
macro_rules! delegate_async_write {
    ($wrapper:ty, $inner:ident) => {
        delegate_async_write!(@impl $wrapper, [$inner], [$inner]);
    };
    ($wrapper:ty, $shared:ident(), $exclusive:ident()) => {
        delegate_async_write!(@impl $wrapper, [$shared()], [$exclusive()]);
    };
    (@impl $wrapper:ty, [$($shared:tt)+], [$($exclusive:tt)+]) => {
        impl tokio::io::AsyncWrite for $wrapper {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut *self.$($exclusive)+).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut *self.$($exclusive)+).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut *self.$($exclusive)+).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut *self.$($exclusive)+).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.$($shared)+.is_write_vectored()
            }
        }
    };
}

/// Implements the traits of Pingora's streams for a type, except for reading and writing, by delegation to
/// the stream in this field, or that these methods return, as above.
macro_rules! delegate_stream_traits {
    ($wrapper:ty, $inner:ident) => {
        delegate_stream_traits!(@impl $wrapper, [$inner], [$inner]);
    };
    ($wrapper:ty, $shared:ident(), $exclusive:ident()) => {
        delegate_stream_traits!(@impl $wrapper, [$shared()], [$exclusive()]);
    };
    (@impl $wrapper:ty, [$($shared:tt)+], [$($exclusive:tt)+]) => {
        #[async_trait::async_trait]
        impl pingora::protocols::Shutdown for $wrapper {
            async fn shutdown(&mut self) {
                // What the wrapper still has is a part of what the other side is to get.
                let _ = tokio::io::AsyncWriteExt::flush(&mut *self).await;
                pingora::protocols::Shutdown::shutdown(&mut *self.$($exclusive)+).await;
            }
        }

        impl pingora::protocols::UniqueID for $wrapper {
            fn id(&self) -> pingora::protocols::UniqueIDType {
                self.$($shared)+.id()
            }
        }

        impl pingora::protocols::Ssl for $wrapper {
            fn get_ssl_digest(&self) -> Option<std::sync::Arc<pingora::protocols::tls::SslDigest>> {
                self.$($shared)+.get_ssl_digest()
            }

            fn selected_alpn_proto(&self) -> Option<pingora::protocols::ALPN> {
                self.$($shared)+.selected_alpn_proto()
            }
        }

        impl pingora::protocols::GetTimingDigest for $wrapper {
            fn get_timing_digest(&self) -> Vec<Option<pingora::protocols::TimingDigest>> {
                self.$($shared)+.get_timing_digest()
            }

            fn get_read_pending_time(&self) -> std::time::Duration {
                self.$($shared)+.get_read_pending_time()
            }

            fn get_write_pending_time(&self) -> std::time::Duration {
                self.$($shared)+.get_write_pending_time()
            }
        }

        impl pingora::protocols::GetProxyDigest for $wrapper {
            fn get_proxy_digest(
                &self,
            ) -> Option<std::sync::Arc<pingora::protocols::raw_connect::ProxyDigest>> {
                self.$($shared)+.get_proxy_digest()
            }
        }

        impl pingora::protocols::GetSocketDigest for $wrapper {
            fn get_socket_digest(&self) -> Option<std::sync::Arc<pingora::protocols::SocketDigest>> {
                self.$($shared)+.get_socket_digest()
            }
        }

        impl pingora::protocols::Peek for $wrapper {}
    };
}

pub(super) use {delegate_async_write, delegate_stream_traits};
