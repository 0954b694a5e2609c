//! One instance against another: the other one holds a word in a file, in memory and behind a port; attempts from this
//! one try to get at them.

use std::fs;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::isolation::{Found, neighbours};
use crate::tcp;

/// Where the word is in the other one's file system.
const FILE: &str = "/lighter-neighbour";
/// What an answer of the other one may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that are answered.
const ANSWERS: usize = 8;

/// Holds `word` and starts `forks` processes more; says `ready KERNEL ADDRESS IP:PORT`, stays until its stdin ends.
/// The word is in its command line, by which its process is found where processes can be seen.
pub fn hold(forks: u32, word: &str) {
    let _ = fs::write(FILE, word);
    let memory = black_box(word.as_bytes().to_vec());
    let listener = TcpListener::bind("0.0.0.0:0");
    let port =
        listener.as_ref().ok().and_then(|listener| listener.local_addr().ok()).map_or(0, |at| at.port());
    crate::forks(forks);
    if let Ok(listener) = listener {
        let word = word.to_owned();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().take(ANSWERS).filter_map(Result::ok) {
                let _ = stream.write_all(word.as_bytes());
            }
        });
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("ready {} {:x} {}:{port}", release.trim(), memory.as_ptr() as usize, own_address());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let _ = fs::remove_file(FILE);
    black_box(memory);
}

/// The address that others reach us at; without a network the loopback interface's.
fn own_address() -> Ipv4Addr {
    // Nothing is sent: the kernel only looks for the way.
    let found = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match found {
        Ok(SocketAddr::V4(at)) => *at.ip(),
        _ => Ipv4Addr::LOCALHOST,
    }
}

/// The file, in this root and in that of the other's process.
pub fn files(word: &str) -> Found {
    if word.is_empty() {
        return (false, "no neighbour".into());
    }
    let theirs = neighbours(word).map(|pid| Path::new("/proc").join(format!("{pid}/root{FILE}")));
    let mut ways = std::iter::once(Path::new(FILE).to_owned()).chain(theirs);
    match ways.find(|path| fs::read_to_string(path).is_ok_and(|text| text == word)) {
        Some(path) => (true, format!("read by {}", path.display())),
        None => (false, "not to be read".into()),
    }
}

/// The word at `address` (hexadecimal) of the other's process: process_vm_readv(2).
pub fn memory(word: &str, address: &str) -> Found {
    let Some(pid) = neighbours(word).next() else { return (false, "its process is not to be seen".into()) };
    let address = usize::from_str_radix(address, 16).unwrap_or_default();
    let mut found = vec![0u8; word.len()];
    let ours = libc::iovec { iov_base: found.as_mut_ptr().cast(), iov_len: found.len() };
    let theirs = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: found.len() };
    // SAFETY: ours is a live buffer of the length that is passed; theirs is only read, by the kernel, which checks it.
    let count = unsafe { libc::process_vm_readv(pid, &raw const ours, 1, &raw const theirs, 1, 0) };
    match count {
        ..0 => (false, std::io::Error::last_os_error().to_string()),
        _ => (found == word.as_bytes(), format!("{count} bytes read")),
    }
}

/// The other one's port.
pub fn network(word: &str, address: &str) -> Found {
    let Ok(address) = address.parse::<SocketAddrV4>() else { return (false, "no neighbour".into()) };
    let mut answer = String::new();
    let answered = tcp::connect(address, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_string(&mut answer)
    });
    match answered {
        Ok(_) if answer == word => (true, format!("it answers at {address}")),
        Ok(_) => (false, "somebody else answers".into()),
        Err(error) => (false, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_neighbour_nothing_is_open() {
        assert!(!files("").0 && !memory("", "0").0 && !network("", "").0);
        assert!(!files("no such word").0 && !memory("no such word", "1000").0);
        assert!(!network("word", "127.0.0.1:1").0);
    }
}
