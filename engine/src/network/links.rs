//! The bridge and its ports, by netlink.

use std::future::Future;
use std::io;
use std::net::IpAddr;

use rtnetlink::{Handle, LinkBridge, LinkUnspec, new_connection};

/// Index of the interface `name` in this network namespace, if there is one.
pub fn index(name: &str) -> Option<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    rustix::net::netdevice::name_to_index(socket.ok()?, name).ok()
}

/// Makes the bridge `name` with these addresses, up; its own MAC address keeps it from changing with its ports.
pub fn create_bridge(name: &str, mac: [u8; 6], addresses: &[(IpAddr, u8)]) -> io::Result<()> {
    with_netlink(async |handle| {
        handle.link().add(LinkBridge::new(name).address(mac.to_vec()).build()).execute().await?;
        let index = index(name).ok_or(rtnetlink::Error::RequestFailed)?;
        quiet(name);
        for (address, prefix) in addresses {
            handle.address().add(index, *address, *prefix).execute().await?;
        }
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    })
}

/// The bridge's addresses are nobody else's, and it learns nothing of its guests.
fn quiet(name: &str) {
    for switch in ["accept_dad", "accept_ra"] {
        // A host without IPv6 has no such switch.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{switch}"), "0");
    }
}

/// Plugs the interface `port` into the bridge and takes it up.
pub fn attach(port: &str, bridge: &str) -> io::Result<()> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let (port, bridge) = (index(port).ok_or_else(missing)?, index(bridge).ok_or_else(missing)?);
    with_netlink(async |handle| {
        handle.link().set(LinkUnspec::new_with_index(port).controller(bridge).up().build()).execute().await
    })
}

/// Removes the interface `name`, if there is one.
pub fn remove(name: &str) -> io::Result<()> {
    match index(name) {
        None => Ok(()),
        Some(index) => with_netlink(async |handle| handle.link().del(index).execute().await),
    }
}

/// Runs `work` on a runtime of its own, which is gone afterwards: nothing else in lighter is asynchronous.
pub(super) fn with_netlink<W, F>(work: W) -> io::Result<()>
where
    W: FnOnce(Handle) -> F,
    F: Future<Output = Result<(), rtnetlink::Error>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection()?;
        let connection = tokio::spawn(connection);
        let result = work(handle).await;
        connection.abort();
        result.map_err(|error| match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    })
}
