//! Published ports in user space: for connections that the packet filter does not lead to the guest.
//!
//! From other machines a port is reached by destination NAT. Connections to the host's loopback are not: leading
//! 127.0.0.1 to a guest would need `route_localnet`, which also lets neighbours on the wire call what listens on
//! loopback. So the socket that claims the port takes these, and those of guests, and hands on what comes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener, UdpSocket as StdUdp};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::FORWARD_PORT;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use crate::network::claim::Claim;
use crate::network::port::Transport;

/// TCP connections at once, over all ports of a container; more wait in the kernel.
const MAX_CONNECTIONS: usize = 1024;
/// UDP clients at once of one port; datagrams of more are dropped.
const MAX_CLIENTS: usize = 256;
/// How long a guest may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A UDP client that is silent for so long has ended.
const UDP_IDLE: Duration = Duration::from_secs(60);
/// Pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest answer of the vsock device.
const MAX_ANSWER: usize = 32;
/// Largest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// How the container is reached.
#[derive(Clone, Debug)]
pub enum Target {
    /// Under its addresses.
    Addresses(IpAddr, Option<IpAddr>),
    /// Through its agent, behind this socket of the machine's vsock device. Only TCP goes there.
    Agent(PathBuf),
}

/// Where one connection leads.
#[derive(Clone, Debug)]
enum Way {
    Address(SocketAddr),
    Agent(PathBuf, u16),
}

/// Serves all of `claims` by tasks of this `LocalSet`.
pub fn serve(claims: Vec<Claim>, target: &Target) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    for Claim { published, socket } in claims {
        let way = match target {
            // A guest without IPv6 is reached by IPv4 whatever the client speaks.
            Target::Addresses(ipv4, ipv6) => {
                let ip = if published.host.is_ipv6() { ipv6.unwrap_or(*ipv4) } else { *ipv4 };
                Way::Address(SocketAddr::new(ip, published.guest_port))
            }
            Target::Agent(vsock) => Way::Agent(vsock.clone(), published.guest_port),
        };
        match published.transport {
            Transport::Tcp => {
                if let Ok(listener) = TcpListener::from_std(StdListener::from(socket)) {
                    spawn_local(tcp(listener, way, connections.clone()));
                }
            }
            Transport::Udp => {
                if let (Ok(socket), Way::Address(address)) = (UdpSocket::from_std(StdUdp::from(socket)), way)
                {
                    spawn_local(udp(Rc::new(socket), address));
                }
            }
        }
    }
}

async fn tcp(listener: TcpListener, way: Way, connections: Arc<Semaphore>) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let way = way.clone();
                spawn_local(async move {
                    // Either side may break off at any time; then the other one is told by the end of its stream.
                    let _ = hand_on(client, &way).await;
                    drop(permit);
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn hand_on(mut client: TcpStream, way: &Way) -> io::Result<()> {
    client.set_nodelay(true)?;
    match way {
        Way::Address(address) => {
            let mut guest = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
            guest.set_nodelay(true)?;
            copy_bidirectional(&mut client, &mut guest).await?;
        }
        Way::Agent(vsock, port) => {
            let mut guest = timeout(CONNECT_TIMEOUT, dial(vsock, *port)).await??;
            copy_bidirectional(&mut client, &mut guest).await?;
        }
    }
    Ok(())
}

/// Has the agent connect to `port` of the container. The vsock device answers `OK` and a number.
async fn dial(vsock: &Path, port: u16) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).await?;
    stream.write_all(format!("CONNECT {FORWARD_PORT}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < MAX_ANSWER {
        answer.push(stream.read_u8().await?);
    }
    if !answer.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.write_u16(port).await?;
    Ok(stream)
}

/// Each client has a socket of its own towards the guest, by which answers find back.
async fn udp(host: Rc<UdpSocket>, target: SocketAddr) {
    let clients: Rc<RefCell<HashMap<SocketAddr, Rc<UdpSocket>>>> = Rc::default();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An ICMP error of an earlier answer is reported here and means nothing.
        let Ok((count, client)) = host.recv_from(&mut buffer).await else { continue };
        let known = clients.borrow().get(&client).cloned();
        let socket = match known {
            Some(socket) => socket,
            None if clients.borrow().len() >= MAX_CLIENTS => continue,
            None => {
                let Ok(socket) = towards(target).await else { continue };
                clients.borrow_mut().insert(client, socket.clone());
                let (host, clients, answers) = (host.clone(), clients.clone(), socket.clone());
                spawn_local(async move {
                    answer(&host, &answers, client).await;
                    clients.borrow_mut().remove(&client);
                });
                socket
            }
        };
        let _ = socket.send(buffer.get(..count).unwrap_or_default()).await;
    }
}

async fn towards(target: SocketAddr) -> io::Result<Rc<UdpSocket>> {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(Rc::new(socket))
}

/// Hands answers back until there are none for a while.
async fn answer(host: &UdpSocket, guest: &UdpSocket, client: SocketAddr) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(received) = timeout(UDP_IDLE, guest.recv(&mut buffer)).await {
        match received {
            Ok(count) => drop(host.send_to(buffer.get(..count).unwrap_or_default(), client).await),
            // Nobody listens in the guest yet; the client may try again.
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}
