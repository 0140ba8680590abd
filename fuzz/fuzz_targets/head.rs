//! A head that is accepted is one that the parser of heads accepts, and has one length and one host.
#![no_main]

use aoai_lb::proxy::client::head::check_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|head: &[u8]| {
    if check_head(head).is_err() {
        return;
    }
    let mut headers = [httparse::EMPTY_HEADER; 512];
    let mut request = httparse::Request::new(&mut headers);
    let Ok(httparse::Status::Complete(_)) = request.parse(head) else { return };
    let count = |name: &str| request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name)).count();
    assert!(count("host") <= 1 && count("content-length") <= 1);
    assert!(count("content-length") + count("transfer-encoding") <= 1);
});
