//! Answers every datagram on UDP port 53, by both versions of IP, with `heard ` and what came.

use std::net::UdpSocket;

fn main() -> std::io::Result<()> {
    let socket = UdpSocket::bind("[::]:53")?;
    let mut buffer = [0; 512];
    loop {
        let (count, caller) = socket.recv_from(&mut buffer)?;
        socket.send_to(&[b"heard ", &buffer[..count]].concat(), caller)?;
    }
}
