//! The errors of the operating system in plain words.

use std::io;

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
    let text = error.to_string();
    // The standard library appends the number of the error.
    match (error.raw_os_error(), text.rsplit_once(" (os error ")) {
        (Some(_), Some((text, _))) => text.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
