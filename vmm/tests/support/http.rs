//! A client of the API socket, and the VMM process that it talks to.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::PATIENCE;

/// A VMM with an API socket in a directory of its own.
pub struct Api {
    /// The directory.
    pub base: TempDir,
    /// The socket.
    pub socket: PathBuf,
    child: Child,
}

/// Status code and body of an answer.
pub type Answer = (u16, Value);

impl Api {
    /// Starts one and waits for its socket.
    pub fn start(arguments: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let socket = base.path().join("api.sock");
        let child = spawn(base.path(), &[&["--api-sock", socket.to_str().unwrap()], arguments].concat());
        let begin = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begin.elapsed() < PATIENCE, "no socket");
            std::thread::sleep(Duration::from_millis(1));
        }
        Api { base, socket, child }
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> String {
        self.base.path().join(name).to_str().unwrap().to_owned()
    }

    /// Makes a call on a connection of its own.
    pub fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, if body.is_empty() { Value::Null } else { serde_json::from_str(body).unwrap() })
    }

    /// A call that must answer with data.
    pub fn get(&self, path: &str) -> Value {
        let (status, body) = self.call("GET", path, "");
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// A call that must be done.
    pub fn done(&self, method: &str, path: &str, body: &Value) {
        let answer = self.call(method, path, &body.to_string());
        assert_eq!(answer, (204, Value::Null), "{method} {path}");
    }

    /// A call that must be refused; gives the message.
    pub fn refused(&self, method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.call(method, path, &body.to_string());
        assert_eq!(status, 400, "{method} {path} {body}: {answer}");
        answer["fault_message"].as_str().unwrap().to_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: the process is a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(self.child.id() as libc::pid_t, signal) }, 0);
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child)
    }

    /// What the process wrote to standard output and error so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.base.path().join("output")).unwrap()
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts `lighter-vmm`; its output goes to the file `output` in `directory`.
pub fn spawn(directory: &Path, arguments: &[&str]) -> Child {
    let output =
        std::fs::OpenOptions::new().create(true).append(true).open(directory.join("output")).unwrap();
    let errors = output.try_clone().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lighter-vmm"));
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors).spawn().unwrap()
}

/// Waits for the end of a process.
pub fn wait(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begin.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}
