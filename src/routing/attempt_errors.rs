//! Why an attempt got no response, in plain words.

/// The words for an error of an attempt; one that is not known here stands for itself.
pub fn attempt_error_in_words(code: &str) -> &str {
    match code {
        "dns" => "its name does not resolve",
        "connect_timeout" => "no connection in time",
        "connect_refused" => "connection refused",
        "connect" => "no connection",
        "local_shortage" => "the balancer has too many open files, or no memory for a connection",
        "tls" => "TLS handshake failed, or its certificate is not trusted",
        "reset" => "connection reset",
        "protocol" => "invalid HTTP",
        "first_byte_timeout" => "no first byte in time",
        "idle_timeout" => "nothing more in time",
        "credential" => "no usable credential",
        "stalled" => "no first byte, and the backend does not answer any more",
        "client_gone" => "the client disconnected",
        "no_answer" => "no answer to a free question",
        code => code,
    }
}
