//! From the handover on, the successor keeps the limits of clients for both processes. Over a connection of its own, the
//! predecessor reports what happens to its requests, and asks for permission to admit others.

use std::io;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use log::{debug, info};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::timeout;

use super::channel::ControlChannel;
use super::control_socket_path::control_socket_path;
use super::protocol::{ControlMessage, REPLY_TIMEOUT};
use crate::admission::limits::{KeeperLink, LimitMessage, PredecessorShare, QueuedMessage};
use crate::gateway::ProcessState;
use crate::server::config_manager::ConfigManager;

/// How many messages are sent at once, at most.
const MAX_BATCH: usize = 256;

/// The connection over which the predecessor reports what counts against limits.
#[derive(Debug)]
pub(super) struct LimitsSource {
    start: SyncSender<(PredecessorShare, Arc<ConfigManager>)>,
}

impl LimitsSource {
    /// Asks the predecessor of this control socket for reports; `None` if it does not send them.
    pub(super) async fn open(upgrade_socket_path: &Path) -> Option<Self> {
        let opened = async {
            let mut channel = ControlChannel::connect(&control_socket_path(upgrade_socket_path)).await?;
            channel.send(&ControlMessage::FollowLimits).await?;
            match channel.receive(REPLY_TIMEOUT).await? {
                // Nothing follows before this process is prepared.
                ControlMessage::ReadyForLimits => Self::wait_for_share(channel.into_blocking()?),
                other => Err(io::Error::other(format!("unexpected message {other:?}"))),
            }
        };
        opened
            .await
            .inspect_err(|problem| info!("upgrade: the old process does not hand over limits: {problem}"))
            .ok()
    }

    fn wait_for_share(stream: BlockingStream) -> io::Result<Self> {
        let (start, started) = sync_channel::<(PredecessorShare, Arc<ConfigManager>)>(1);
        spawn_thread("limits keeper", move |runtime| {
            // The sender is dropped if this process does not take over.
            let Ok((mut share, config_manager)) = started.recv() else { return };
            let ended = runtime.block_on(keep_limits(stream, &mut share, &config_manager));
            debug!("limits: the connection to the old process has ended: {ended:?}");
            let process = config_manager.process_state();
            share.settle_all(&process.client_accounts, Instant::now());
            process.limits_kept_for.fetch_sub(1, Ordering::AcqRel);
        })?;
        Ok(Self { start })
    }

    /// Keeps the limits for the predecessor until it ends. `share` is what its requests hold at first.
    pub(super) fn keep_limits(self, share: PredecessorShare, config_manager: &Arc<ConfigManager>) {
        config_manager.process_state().limits_kept_for.fetch_add(1, Ordering::AcqRel);
        // The thread waits for it.
        let _ = self.start.send((share, Arc::clone(config_manager)));
    }
}

async fn keep_limits(
    stream: BlockingStream,
    share: &mut PredecessorShare,
    config_manager: &ConfigManager,
) -> io::Result<()> {
    let accounts = &config_manager.process_state().client_accounts;
    let (reader, mut writer) = to_async(stream)?.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line) {
            Ok(LimitMessage::Ask { id, booking }) => {
                let gateway = Arc::clone(&config_manager.active_config().load().gateway);
                let answer = gateway.reserve_for_predecessor(share, id, &booking).await;
                let mut answer = serde_json::to_vec(&answer)?;
                answer.push(b'\n');
                write_in_time(&mut writer, &answer).await?;
            }
            Ok(message) => share.apply(accounts, &message, Instant::now()),
            Err(problem) => debug!("limits: the old process has sent an unknown message: {problem}"),
        }
    }
    Ok(())
}

/// Reports what happens to a successor, from its snapshot until this process ends.
pub(super) async fn tell_limits(mut channel: ControlChannel, process: Arc<ProcessState>) {
    let (link, queue) = KeeperLink::new();
    // First: once the successor knows that this process is ready, the snapshot may be made.
    process.client_accounts.offer_keeper(Arc::clone(&link));
    let started = match channel.send(&ControlMessage::ReadyForLimits).await {
        Ok(()) => channel.into_blocking(),
        Err(problem) => Err(problem),
    };
    let thread_link = Arc::clone(&link);
    let started = started.and_then(|stream| {
        spawn_thread("limits", move |runtime| {
            let ended = runtime.block_on(pass_on(stream, queue, &thread_link));
            thread_link.close();
            let is_asked =
                process.client_accounts.keeper().is_some_and(|keeper| Arc::ptr_eq(keeper, &thread_link));
            if is_asked {
                let reason = ended.err().map_or("it has ended".to_owned(), |problem| problem.to_string());
                info!(
                    "limits: the new process no longer answers ({reason}): this process decides by its own counts"
                );
            }
        })
    });
    if let Err(problem) = started {
        debug!("limits: cannot report to the new process: {problem}");
        link.close();
    }
}

async fn pass_on(
    stream: BlockingStream,
    queue: UnboundedReceiver<QueuedMessage>,
    link: &Arc<KeeperLink>,
) -> io::Result<()> {
    let (reader, writer) = to_async(stream)?.into_split();
    tokio::select! {
        ended = send_messages(writer, queue) => ended,
        ended = read_answers(reader, link) => ended,
    }
}

/// Starts a thread with a runtime of its own: no work in the background delays a request that waits for permission.
fn spawn_thread(name: &str, run: impl FnOnce(Runtime) + Send + 'static) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name(name.to_owned()).spawn(move || run(runtime)).map(drop)
}

fn to_async(stream: BlockingStream) -> io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

async fn send_messages(
    mut writer: impl AsyncWrite + Unpin,
    mut queue: UnboundedReceiver<QueuedMessage>,
) -> io::Result<()> {
    let mut messages = Vec::new();
    while queue.recv_many(&mut messages, MAX_BATCH).await > 0 {
        let (mut bytes, mut flushed) = (Vec::new(), Vec::new());
        for message in messages.drain(..) {
            match message {
                QueuedMessage::Send(message) => {
                    serde_json::to_writer(&mut bytes, &message)?;
                    bytes.push(b'\n');
                }
                QueuedMessage::Flush(waiting) => flushed.push(waiting),
            }
        }
        write_in_time(&mut writer, &bytes).await?;
        drop(flushed);
    }
    Ok(())
}

async fn read_answers(reader: impl AsyncRead + Unpin, link: &Arc<KeeperLink>) -> io::Result<()> {
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        link.on_answer(serde_json::from_str(&line)?);
    }
    Ok(())
}

/// Fails if the other side does not read, so that unsent messages do not pile up in memory.
async fn write_in_time(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let written = timeout(REPLY_TIMEOUT, writer.write_all(bytes)).await;
    written.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the other side does not read"))?
}
