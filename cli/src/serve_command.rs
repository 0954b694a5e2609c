//! `lighter serve`: the engine's API.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use engine::dirs::Dirs;
use engine_api::{Listen, Options, Tls};

/// `lighter serve`
#[derive(Args)]
pub struct ServeArgs {
    /// The socket [default: what systemd hands over, else api.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Let members of this group connect, too
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Ask for tokens, which this file gives to tenants
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Also listen on TCP, for clients with a certificate
    #[arg(long, value_name = "ADDRESS:PORT", requires_all = ["tls_cert", "tls_key", "tls_client_ca"])]
    listen: Option<SocketAddr>,
    /// The server's certificate, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_key: Option<PathBuf>,
    /// Who vouches for clients, PEM
    #[arg(long, value_name = "FILE", requires = "listen")]
    tls_client_ca: Option<PathBuf>,
}

/// Serves until a signal comes.
pub fn serve(dirs: &Dirs, args: ServeArgs) -> anyhow::Result<()> {
    let inherited = std::env::var_os("LISTEN_FDS").is_some();
    let listen = match (args.socket, inherited) {
        (None, true) if args.group.is_some() => {
            bail!("--group goes with a socket of lighter's own: see SocketGroup=")
        }
        (None, true) => Listen::Inherited,
        (path, _) => {
            Listen::Unix { path: path.unwrap_or_else(|| dirs.run.join("api.sock")), group: args.group }
        }
    };
    let tcp = match (args.listen, args.tls_cert, args.tls_key, args.tls_client_ca) {
        (None, ..) => None,
        (Some(address), Some(certificate), Some(key), Some(client_ca)) => {
            Some((address, Tls { certificate, key, client_ca }))
        }
        _ => bail!("--listen needs --tls-cert, --tls-key and --tls-client-ca"),
    };
    let options = Options { listen, tcp, tokens: args.tokens, version: env!("CARGO_PKG_VERSION") };
    engine_api::serve(dirs, &options).context("cannot serve")
}
