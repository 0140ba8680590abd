//! The errors of the operating system and of OpenSSL in plain words: what has happened, and the likely reason where
//! their own words do not lead to it.

use std::io;

use rustix::io::Errno;

/// What has happened, without the number of the error. Where the system's words do not lead to the likely reason,
/// they are replaced. An error that did not come from the system keeps its text.
pub fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => return "connection refused (nothing listens there)".to_owned(),
        io::ErrorKind::TimedOut => return "no answer in time".to_owned(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            return "the other side closed the connection".to_owned();
        }
        io::ErrorKind::ConnectionReset => return "the other side reset the connection".to_owned(),
        io::ErrorKind::AddrNotAvailable => return "this machine does not have the address".to_owned(),
        io::ErrorKind::StorageFull => return "the disk is full".to_owned(),
        _ => {}
    }
    if Errno::from_io_error(error) == Some(Errno::MFILE) {
        return "the process has too many open files (LimitNOFILE)".to_owned();
    }
    without_error_number(&error.to_string()).to_owned()
}

/// Whether this process or machine lacks what a new connection needs, whatever is at its other end: file
/// descriptors, or memory of the kernel.
pub fn is_local_shortage(error: &io::Error) -> bool {
    const SHORTAGES: [Errno; 4] = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| SHORTAGES.contains(&error))
}

/// A message without the number of the error that the standard library appends.
pub fn without_error_number(message: &str) -> &str {
    match message.rsplit_once(" (os error ") {
        Some((text, number)) if number.ends_with(')') => text,
        _ => message,
    }
}

/// Why a host name was not resolved.
pub fn describe_lookup(error: &io::Error) -> String {
    let text = error.to_string();
    // The words of getaddrinfo(3), to which the standard library adds its own.
    let reason = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
    match reason {
        "Name or service not known" | "No such host is known" => {
            "there is no such name; is it spelled right, and does this network's DNS know it?".to_owned()
        }
        "Temporary failure in name resolution" | "Try again" => {
            "the DNS server did not answer; is it reachable from this machine?".to_owned()
        }
        "No address associated with hostname" => "the name has no address".to_owned(),
        _ => describe(error),
    }
}

/// Why a TLS handshake failed, from the text of OpenSSL's error.
pub fn describe_tls(openssl_text: &str) -> String {
    const REASONS: [(&str, &str); 12] = [
        ("certificate verify failed", "the certificate is not trusted, has expired, or is for another name"),
        ("wrong version number", "the other side does not speak TLS on this port"),
        ("http request", "the other side does not speak TLS on this port"),
        ("packet length too long", "the other side does not speak TLS on this port"),
        ("certificate required", "the other side asks for a client certificate"),
        ("unknown ca", "the other side does not trust the client certificate"),
        ("bad certificate", "the other side does not accept the client certificate"),
        ("certificate expired", "the other side says that the client certificate has expired"),
        ("handshake failure", "there is no common cipher, or the other side asks for a client certificate"),
        ("protocol version", "there is no common TLS version"),
        ("unsupported protocol", "there is no common TLS version"),
        ("unexpected eof", "the other side closed the connection during the handshake"),
    ];
    let text = openssl_text.to_ascii_lowercase();
    let known =
        REASONS.iter().find(|(words, _)| text.contains(words)).map(|(_, reason)| (*reason).to_owned());
    known.unwrap_or_else(|| {
        // `error:0A000126:SSL routines:function:reason:file:line:data`: only the reason is for a reader.
        let field = openssl_text.strip_prefix("error:").and_then(|rest| rest.split(':').nth(3));
        field.unwrap_or("the connection was lost during the handshake").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_machine_lacks_is_told_apart() {
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(is_local_shortage(&error(errno)), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::ADDRNOTAVAIL] {
            assert!(!is_local_shortage(&error(errno)), "{errno}");
        }
        assert!(!is_local_shortage(&io::Error::other("24")));
        assert_eq!(describe(&error(Errno::MFILE)), "the process has too many open files (LimitNOFILE)");
    }

    #[test]
    fn a_failed_lookup_has_a_likely_reason() {
        let lookup = |words: &str| {
            describe_lookup(&io::Error::other(format!("failed to lookup address information: {words}")))
        };
        assert!(lookup("Name or service not known").starts_with("there is no such name"));
        assert!(lookup("Temporary failure in name resolution").starts_with("the DNS server did not answer"));
        assert_eq!(describe_lookup(&io::Error::from(io::ErrorKind::TimedOut)), "no answer in time");
    }

    #[test]
    fn a_failed_handshake_has_no_codes_of_openssl() {
        for (text, expected) in [
            (
                "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:ssl/record/ssl3_record.c:354:",
                "the other side does not speak TLS on this port",
            ),
            (
                "TLS connect() failed: error:0A000086:SSL routines::certificate verify failed:x.c:1889:, SNI: a.b",
                "the certificate is not trusted, has expired, or is for another name",
            ),
            (
                "error:0A000410:SSL routines::sslv3 alert handshake failure:x.c:1605:SSL alert number 40",
                "there is no common cipher, or the other side asks for a client certificate",
            ),
            ("error:0A000999:SSL routines:f:something new:x.c:1:", "something new"),
            ("unexpected EOF", "the other side closed the connection during the handshake"),
            ("Broken pipe (os error 32)", "the connection was lost during the handshake"),
        ] {
            assert_eq!(describe_tls(text), expected, "{text}");
        }
    }

    #[test]
    fn an_error_of_the_system_has_no_number() {
        for (error, expected) in [
            (io::Error::from_raw_os_error(2), "No such file or directory"),
            (io::Error::from_raw_os_error(13), "Permission denied"),
            (io::Error::from_raw_os_error(111), "connection refused (nothing listens there)"),
            (io::Error::from_raw_os_error(99), "this machine does not have the address"),
            (io::Error::from(io::ErrorKind::TimedOut), "no answer in time"),
            (io::Error::other("it said no"), "it said no"),
        ] {
            assert_eq!(describe(&error), expected, "{error:?}");
        }
    }
}
