//! Requests from the socket, replies to it: a few threads, each with one request at a time.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::api::{Vfs, VfsOptions};
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};
use fuse_backend_rs::transport::{FuseBuf, FuseDevWriter, Reader, Writer};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::tree;

/// Requests that are worked on at once: a slow disk holds one of them up, not the others.
const WORKERS: usize = 4;
/// Bytes of the longest request and reply; the device's queues bound both to less.
const MAX_MESSAGE: usize = 144 << 10;
/// How long the guest may rely on what it knows of a file whose host may change it, too.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of `struct fuse_in_header` and `fuse_out_header`.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;
/// Where a request says on whose behalf it is made: uid and gid.
const CALLER: std::ops::Range<usize> = 24..32;
const UNIQUE: std::ops::Range<usize> = 8..16;

/// The file system that is served: what is below [`tree::ROOT`].
pub struct Files {
    server: Server<Arc<Vfs>>,
    vfs: Arc<Vfs>,
    passthrough: std::sync::Mutex<Option<PassthroughFs>>,
    /// There is only one user on the host, so every process of the guest acts as that one.
    one_user: bool,
}

impl Files {
    /// Not usable before [`Files::import`].
    pub fn new(one_user: bool) -> io::Result<Self> {
        let config = Config {
            root_dir: tree::ROOT.to_owned(),
            attr_timeout: TIMEOUT,
            entry_timeout: TIMEOUT,
            cache_policy: CachePolicy::Auto,
            xattr: true,
            do_import: false,
            killpriv_v2: true,
            enable_mntid: true,
            allow_direct_io: false,
            ..Config::default()
        };
        let options = VfsOptions {
            no_open: false,
            no_opendir: false,
            no_writeback: true,
            killpriv_v2: true,
            ..VfsOptions::default()
        };
        let vfs = Arc::new(Vfs::new(options));
        let passthrough = PassthroughFs::<()>::new(config)?;
        Ok(Self {
            server: Server::new(vfs.clone()),
            vfs,
            passthrough: std::sync::Mutex::new(Some(passthrough)),
            one_user,
        })
    }

    /// Takes the root as it is now.
    pub fn import(&self) -> io::Result<()> {
        let taken = self.passthrough.lock().ok().and_then(|mut there| there.take());
        let passthrough = taken.ok_or(io::ErrorKind::AlreadyExists)?;
        passthrough.import()?;
        self.vfs.mount(Box::new(passthrough), "/").map_err(|error| io::Error::other(format!("{error:?}")))?;
        Ok(())
    }

    /// Works on `request` and replies to it.
    fn handle(&self, socket: BorrowedFd<'_>, request: &mut [u8], reply: &mut [u8]) {
        if request.len() < IN_HEADER {
            return;
        }
        let unique: [u8; 8] = request[UNIQUE].try_into().unwrap_or_default();
        if self.one_user {
            request[CALLER].fill(0);
        }
        let handled = Reader::from_fuse_buffer(FuseBuf::new(request)).and_then(|reader| {
            let writer = FuseDevWriter::<()>::new(socket.as_raw_fd(), reply)?;
            Ok((reader, writer))
        });
        let failed = match handled {
            Ok((reader, writer)) => {
                self.server.handle_message(reader, Writer::FuseDev(writer), None, None).is_err()
            }
            Err(_) => true,
        };
        if failed {
            // Maybe the second reply, which the device drops; without any the guest would wait for ever.
            let mut header = [0; OUT_HEADER];
            header[..4].copy_from_slice(&16u32.to_le_bytes());
            header[4..8].copy_from_slice(&(-libc::EIO).to_le_bytes());
            header[UNIQUE].copy_from_slice(&unique);
            let _ = send(socket, &header, SendFlags::NOSIGNAL);
        }
    }
}

/// Serves until the other end of `socket` is closed.
pub fn serve(files: Files, socket: &OwnedFd) -> io::Result<()> {
    let work = || {
        let mut request = vec![0; MAX_MESSAGE];
        let mut reply = vec![0; MAX_MESSAGE];
        loop {
            match recv(socket, &mut request[..], RecvFlags::empty()) {
                Ok((0, _)) => return Ok(()),
                Ok((len, _)) => files.handle(socket.as_fd(), &mut request[..len], &mut reply),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno)),
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker of the file server broke")))
        })
    })
}
