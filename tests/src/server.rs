//! `lighter serve`, asked over its socket.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::lighter::{GUEST_DEADLINE, Installation};

/// A server with an installation of its own.
pub struct Server {
    /// Its installation.
    pub installation: Installation,
    /// It.
    pub child: Child,
    /// Its socket.
    pub socket: PathBuf,
    options: Vec<String>,
}

impl Server {
    /// With these options, in a new installation.
    pub fn start(options: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(Installation::new()?, options)
    }

    /// One that was started in another way, once it answers.
    pub fn started(installation: Installation, child: Child, socket: PathBuf) -> anyhow::Result<Self> {
        let server = Self { installation, child, socket, options: Vec::new() };
        server.wait()?;
        Ok(server)
    }

    /// In this installation.
    pub fn start_with(installation: Installation, options: &[&str]) -> anyhow::Result<Self> {
        let socket = installation.root().join("api.sock");
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let child = Self::spawn(&installation, &socket, &options)?;
        let server = Server { installation, child, socket, options };
        server.wait()?;
        Ok(server)
    }

    fn spawn(installation: &Installation, socket: &Path, options: &[String]) -> anyhow::Result<Child> {
        let mut command = installation.command(["serve", "--socket"]);
        command.arg(socket).args(options).stdout(Stdio::null());
        let log =
            std::fs::File::options().create(true).append(true).open(installation.root().join("serve.log"))?;
        command.stderr(log).spawn().context("cannot start the server")
    }

    fn wait(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&self.socket).is_err() {
            ensure!(Instant::now() < end, "the server does not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// What it said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.installation.root().join("serve.log")).unwrap_or_default()
    }

    /// Ends it with SIGKILL and starts another one.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = Self::spawn(&self.installation, &self.socket, &self.options)?;
        self.wait()
    }

    /// A connection.
    pub fn stream(&self) -> anyhow::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(stream)
    }

    /// Status and body of the answer to a request.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        self.call_as(None, method, path, body)
    }

    /// The same with a token.
    pub fn call_as(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(u16, Value)> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\n{token}content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        let answer = self.raw((head + &body).as_bytes())?;
        let text = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status(&answer)?, serde_json::from_str(text).unwrap_or(Value::String(text.to_owned()))))
    }

    /// The same where it has to succeed.
    pub fn good(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.call(method, path, body)?;
        ensure!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        Ok(answer)
    }

    /// One more server of the same installation.
    pub fn second(&self) -> anyhow::Result<Second> {
        let socket = self.installation.root().join("second.sock");
        let second = Second { child: Self::spawn(&self.installation, &socket, &self.options)?, socket };
        let end = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&second.socket).is_err() {
            ensure!(Instant::now() < end, "the second server does not come up: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(second)
    }

    /// Everything that comes back for these bytes.
    pub fn raw(&self, bytes: &[u8]) -> anyhow::Result<String> {
        let mut stream = self.stream()?;
        stream.set_read_timeout(Some(GUEST_DEADLINE))?;
        // A server that refuses closes before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let id = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let end = Instant::now() + Duration::from_secs(15);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A server beside another one, killed when dropped.
pub struct Second {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the server at `socket` with one more header; status, head and body of its answer.
pub fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    header: &str,
    body: Option<&Value>,
) -> anyhow::Result<(u16, String, Value)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(GUEST_DEADLINE))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\n{header}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, text) = answer.split_once("\r\n\r\n").context("half an answer")?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    Ok((status(&answer)?, head.to_owned(), value))
}

/// The status of an answer.
pub fn status(answer: &str) -> anyhow::Result<u16> {
    let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    status.with_context(|| format!("no answer: {answer:?}"))
}
