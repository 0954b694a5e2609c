//! Docker's credential helpers: `docker-credential-NAME get`, server on stdin, JSON on stdout.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::{CredentialError, Credentials};

/// A helper that waits for a locked key ring must not hang a pull for ever.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A helper's answer is a line; this bounds what a broken one can send.
const MAX_ANSWER_BYTES: u64 = 64 << 10;

/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks the helper `name` for the credentials of `server`. `path` replaces `$PATH`.
pub(super) fn find(
    name: &str,
    server: &str,
    path: Option<&OsStr>,
) -> Result<Option<Credentials>, CredentialError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err(CredentialError::HelperName(name.chars().take(100).collect()));
    }
    let failed = |reason: String| CredentialError::HelperFailed { name: name.to_owned(), reason };
    let (status, answer) = run(name, server, path)
        .map_err(|source| CredentialError::HelperRun { name: name.to_owned(), source })?;
    match status {
        None => Err(failed(format!("did not answer within {} seconds", TIMEOUT.as_secs()))),
        Some(status) if status.success() => {
            let answer: Answer = serde_json::from_slice(&answer)
                .map_err(|_| failed("did not answer with the JSON of the protocol".into()))?;
            Ok(Some(if answer.username == TOKEN_USER {
                Credentials::IdentityToken(answer.secret)
            } else {
                Credentials::Basic { username: answer.username, password: answer.secret }
            }))
        }
        Some(status) => {
            let text = String::from_utf8_lossy(&answer);
            let text = text.trim();
            if text.contains("credentials not found") {
                return Ok(None);
            }
            let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
            Err(failed(format!("failed ({status}): {text}")))
        }
    }
}

/// Runs the helper. No status: it took too long and was ended.
fn run(name: &str, server: &str, path: Option<&OsStr>) -> std::io::Result<(Option<ExitStatus>, Vec<u8>)> {
    let mut command = Command::new(format!("docker-credential-{name}"));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let mut child =
        command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read is judged by its answer.
        let _ = stdin.write_all(server.as_bytes());
    }
    let stdout = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        if let Some(stdout) = stdout {
            // What was read before an error is still the answer.
            let _ = stdout.take(MAX_ANSWER_BYTES).read_to_end(&mut answer);
        }
        answer
    });
    let status = wait(&mut child)?;
    if status.is_none() {
        // Its children may hold the pipe open, so the reader is not waited for.
        return Ok((None, Vec::new()));
    }
    Ok((status, reader.join().unwrap_or_default()))
}

fn wait(child: &mut Child) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Runs a helper made of `script`.
    fn ask(script: &str) -> Result<Option<Credentials>, CredentialError> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:/usr/bin:/bin", dir.path().display());
        // Another test's fork may still hold the script open for writing (ETXTBSY).
        for _ in 0..50 {
            match find("test", "host:5000", Some(OsStr::new(&path))) {
                Err(CredentialError::HelperRun { source, .. }) if source.raw_os_error() == Some(26) => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                answer => return answer,
            }
        }
        panic!("the script stayed busy");
    }

    #[test]
    fn a_helper_answers_with_user_and_secret() {
        let script = r#"read -r server; [ "$1" = get ] || exit 3
            echo "{\"ServerURL\":\"$server\",\"Username\":\"u\",\"Secret\":\"$server\"}""#;
        let expected = Credentials::Basic { username: "u".into(), password: "host:5000".into() };
        assert_eq!(ask(script).unwrap(), Some(expected));
    }

    #[test]
    fn a_helper_answers_with_an_identity_token() {
        let answer = ask(r#"echo '{"Username":"<token>","Secret":"T"}'"#).unwrap();
        assert_eq!(answer, Some(Credentials::IdentityToken("T".into())));
    }

    #[test]
    fn a_helper_that_knows_nothing_means_anonymous() {
        assert_eq!(ask("echo 'credentials not found in native keychain'; exit 1").unwrap(), None);
    }

    #[test]
    fn a_helper_that_fails_or_talks_nonsense_is_named() {
        for script in ["echo locked; exit 1", "echo nonsense"] {
            let error = ask(script).unwrap_err().to_string();
            assert!(error.contains("docker-credential-test"), "{error}");
        }
        assert!(matches!(find("../../bin/sh", "h", None), Err(CredentialError::HelperName(_))));
        assert!(matches!(find("none-such-helper", "h", None), Err(CredentialError::HelperRun { .. })));
    }
}
