//! Ports for balancers and for closed endpoints: no two tests get the same one, in this process or in another.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the range of ephemeral ports, so that no connection takes one before its test does.
const FIRST_PORT: u16 = 20_000;
const PORTS_PER_BLOCK: u16 = 1_000;
const BLOCKS: u16 = 12;

/// The ports of this process.
struct PortBlock {
    first: u16,
    next: AtomicU16,
    /// A name of the network that the ports belong to. It says to other processes whose block this is, as long as
    /// this process lives.
    _claim: UnixListener,
}

impl PortBlock {
    fn claim() -> Self {
        let claim_of = |first: u16| {
            let name = SocketAddr::from_abstract_name(format!("aoai-lb: test ports from {first}")).unwrap();
            UnixListener::bind_addr(&name).ok()
        };
        let firsts = (0..BLOCKS).map(|block| FIRST_PORT + block * PORTS_PER_BLOCK);
        let free = firsts.into_iter().find_map(|first| Some((first, claim_of(first)?)));
        let (first, claim) = free.expect("twelve other processes run tests on this machine");
        Self { first, next: AtomicU16::new(0), _claim: claim }
    }
}

/// A port that is not in use. It comes up again only when all other ports of this process have.
pub fn free_port() -> u16 {
    static PORTS: LazyLock<PortBlock> = LazyLock::new(PortBlock::claim);
    let ports = &*PORTS;
    loop {
        let port = ports.first + ports.next.fetch_add(1, Ordering::Relaxed) % PORTS_PER_BLOCK;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
