//! The name servers that are asked what lighter does not know.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// What one server gets before the next one is asked.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Port of name servers.
const PORT: u16 = 53;
/// Largest answer.
const MAX_MESSAGE: usize = 65_535;

/// The first answer to `query` that one of `servers` gives, by TCP if `stream`.
pub async fn ask(servers: &[IpAddr], query: &[u8], stream: bool) -> Option<Vec<u8>> {
    for server in servers {
        let server = SocketAddr::new(*server, PORT);
        let answer = async { if stream { by_tcp(server, query).await } else { by_udp(server, query).await } };
        if let Ok(Ok(answer)) = timeout(TIMEOUT, answer).await {
            return Some(answer);
        }
    }
    None
}

async fn by_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let count = socket.recv(&mut answer).await?;
        // The first two bytes tell which question is answered.
        if answer.get(..count).is_some_and(|answer| answer.get(..2) == query.get(..2)) {
            answer.truncate(count);
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    read_message(&mut stream).await
}

/// One message behind its length (RFC 1035, section 4.2.2).
pub async fn read_message<S: AsyncReadExt + Unpin>(stream: &mut S) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// As [`read_message`]; both in one write, as some servers expect.
pub async fn write_message<S: AsyncWriteExt + Unpin>(stream: &mut S, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat()).await
}
