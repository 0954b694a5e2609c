//! Which file a command is: `PATH` of the process's own environment, as `execvp` does it.

use std::os::unix::fs::PermissionsExt;

use agent_protocol::message::FailureKind;

use crate::failure::Failure;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds the file of `program`. Called inside the container's root.
///
/// # Errors
/// [`FailureKind::NotFound`] (exit code 127), or [`FailureKind::NotExecutable`] (126) if a file is there that
/// cannot be run.
pub fn find(program: &str, env: &[String]) -> Result<String, Failure> {
    if program.is_empty() {
        return Err(failure(FailureKind::NotFound, program, "an empty command"));
    }
    if program.contains('/') {
        return match inspect(program) {
            File::Runnable => Ok(program.to_owned()),
            File::Missing => Err(failure(FailureKind::NotFound, program, "no such file in the image")),
            File::Unusable(why) => Err(failure(FailureKind::NotExecutable, program, why)),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut unusable = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{directory}/{program}");
        match inspect(&candidate) {
            File::Runnable => return Ok(candidate),
            File::Unusable(why) => {
                unusable = unusable.or(Some(failure(FailureKind::NotExecutable, &candidate, why)))
            }
            File::Missing => {}
        }
    }
    let not_found =
        || failure(FailureKind::NotFound, program, &format!("executable file not found in PATH ({path})"));
    Err(unusable.unwrap_or_else(not_found))
}

enum File {
    Runnable,
    Missing,
    Unusable(&'static str),
}

fn inspect(path: &str) -> File {
    match std::fs::metadata(path) {
        Err(_) => File::Missing,
        Ok(meta) if meta.is_dir() => File::Unusable("is a directory"),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => {
            File::Unusable("permission denied (no execute bit)")
        }
        Ok(_) => File::Runnable,
    }
}

fn failure(kind: FailureKind, program: &str, why: &str) -> Failure {
    Failure { kind, message: format!("{program}: {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(program: &str, env: &[&str]) -> Option<FailureKind> {
        let env: Vec<String> = env.iter().map(|entry| (*entry).to_owned()).collect();
        find(program, &env).err().map(|failure| failure.kind)
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert_eq!(kind("/bin/sh", &[]), None);
        assert_eq!(find("sh", &["PATH=/nowhere:/bin".into()]).unwrap(), "/bin/sh");
        assert_eq!(kind("sh", &[]), None);
    }

    #[test]
    fn what_is_not_there_is_127_and_what_cannot_run_is_126() {
        assert_eq!(kind("no-such-program", &[]), Some(FailureKind::NotFound));
        assert_eq!(kind("/no/such/program", &[]), Some(FailureKind::NotFound));
        assert_eq!(kind("", &[]), Some(FailureKind::NotFound));
        assert_eq!(kind("/etc", &[]), Some(FailureKind::NotExecutable));
        assert_eq!(kind("/etc/passwd", &[]), Some(FailureKind::NotExecutable));
        assert_eq!(kind("passwd", &["PATH=/etc"]), Some(FailureKind::NotExecutable));
        assert_eq!(kind("sh", &["PATH=/nowhere"]), Some(FailureKind::NotFound));
    }
}
