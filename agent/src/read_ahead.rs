//! Files that programs of an image are made of, read while the image's template is made: its clones find them in memory,
//! which they share, where each of them would have to read them from its disk.
//!
//! ```text
//! program ─┬ "#!": its interpreter ─► …
//!          └ ELF: PT_INTERP and DT_NEEDED ─► libraries ─► …
//! ```
//!
//! Whatever is not found or not understood is left out: nothing depends on it.

use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use agent_protocol::message::ReadAhead;

use crate::process::lookup;

/// Most files that are read.
const MAX_FILES: usize = 64;
/// Most bytes of all of them.
const MAX_BYTES: u64 = 32 << 20;
/// Longest line of an interpreter, and longest name of a library or interpreter.
const MAX_TEXT: usize = 256;
/// Most program headers and dynamic entries that are looked at.
const MAX_ENTRIES: u16 = 512;
/// Where libraries are looked for, but for `DT_RUNPATH` and `ld.so.conf`.
const LIBRARIES: [&str; 7] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
    "/usr/local/lib",
];

/// Reads the programs of `plan` and all that they need. Called inside the container's root, where nothing runs.
pub fn read_ahead(plan: &ReadAhead) {
    let environment: Vec<String> = plan.path.iter().map(|path| format!("PATH={path}")).collect();
    let found = plan.programs.iter().filter_map(|program| lookup::find(program, &environment).ok());
    let mut queue: VecDeque<String> = found.collect();
    let mut seen = HashSet::new();
    let mut budget = MAX_BYTES;
    while let Some(path) = queue.pop_front() {
        if seen.len() < MAX_FILES && seen.insert(path.clone()) {
            queue.extend(read(&path, &mut budget, &environment).unwrap_or_default());
        }
    }
}

/// Reads the file, if it is one, and tells which others it needs.
fn read(path: &str, budget: &mut u64, environment: &[String]) -> io::Result<Vec<String>> {
    let metadata = std::fs::metadata(path)?;
    // Neither pipes and devices of the image's, nor what /proc makes up.
    if !metadata.is_file() || metadata.len() == 0 || metadata.len() > *budget {
        return Ok(Vec::new());
    }
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    *budget -= metadata.len();
    io::copy(&mut file.by_ref().take(metadata.len()), &mut io::sink())?;
    let mut head = [0; MAX_TEXT];
    let count = file.read_at(&mut head, 0)?;
    Ok(match head.get(..count).unwrap_or_default() {
        [b'#', b'!', line @ ..] => script(line, environment),
        [0x7f, b'E', b'L', b'F', 2, 1, ..] => Elf::read(&file)?.needs(),
        _ => Vec::new(),
    })
}

/// The interpreter of a script, and with `env` the program that this looks for.
fn script(line: &[u8], environment: &[String]) -> Vec<String> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace().map(str::to_owned);
    let interpreter = words.next();
    let by_env = interpreter.as_ref().filter(|name| name.ends_with("/env")).and_then(|_| words.next());
    let program = by_env.and_then(|name| lookup::find(&name, environment).ok());
    interpreter.into_iter().chain(program).collect()
}

/// What an ELF file of 64 bits says about others (System V ABI, chapter 5).
#[derive(Default)]
struct Elf {
    interpreter: Option<String>,
    libraries: Vec<String>,
}

impl Elf {
    const LOAD: u32 = 1;
    const DYNAMIC: u32 = 2;
    const INTERPRETER: u32 = 3;
    const HEADER_BYTES: u64 = 56;
    const NEEDED: u64 = 1;
    const STRINGS: u64 = 5;

    fn read(file: &File) -> io::Result<Self> {
        let mut elf = Self::default();
        let table = u64::from_le_bytes(bytes(file, Some(32))?);
        let count = u16::from_le_bytes(bytes(file, Some(56))?).min(MAX_ENTRIES);
        let (mut segments, mut dynamic) = (Vec::new(), None);
        for number in 0..u64::from(count) {
            let at = table.checked_add(number * Self::HEADER_BYTES);
            let word = |offset| -> io::Result<u64> {
                Ok(u64::from_le_bytes(bytes(file, at.and_then(|at| at.checked_add(offset)))?))
            };
            match u32::from_le_bytes(bytes(file, at)?) {
                Self::LOAD => segments.push((word(16)?, word(8)?, word(32)?)),
                Self::DYNAMIC => dynamic = Some((word(8)?, word(32)? / 16)),
                Self::INTERPRETER => elf.interpreter = Some(text(file, Some(word(8)?))?),
                _ => {}
            }
        }
        let Some((table, count)) = dynamic else { return Ok(elf) };
        let (mut names, mut strings) = (Vec::new(), None);
        for number in 0..count.min(u64::from(MAX_ENTRIES)) {
            let at = table.checked_add(number * 16);
            let value = u64::from_le_bytes(bytes(file, at.and_then(|at| at.checked_add(8)))?);
            match u64::from_le_bytes(bytes(file, at)?) {
                0 => break,
                Self::NEEDED => names.push(value),
                Self::STRINGS => strings = Some(value),
                _ => {}
            }
        }
        // The table of names is told by its address in memory.
        let place = |address: u64| {
            let (start, offset, _) = segments
                .iter()
                .find(|(start, _, size)| address.checked_sub(*start).is_some_and(|at| at < *size))?;
            offset.checked_add(address - start)
        };
        if let Some(strings) = strings.and_then(place) {
            let name = |offset: u64| text(file, strings.checked_add(offset));
            elf.libraries = names.into_iter().map(name).collect::<io::Result<_>>()?;
        }
        Ok(elf)
    }

    /// The files, of libraries each place where one may be.
    fn needs(self) -> Vec<String> {
        let beside =
            self.interpreter.as_deref().and_then(|path| path.rsplit_once('/')).map(|(place, _)| place);
        let places: Vec<&str> = beside.into_iter().chain(LIBRARIES).collect();
        let found = |library: &String| {
            let candidates = places.iter().map(|place| format!("{place}/{library}"));
            candidates.into_iter().find(|path| std::fs::metadata(path).is_ok())
        };
        let libraries: Vec<String> = self.libraries.iter().filter_map(found).collect();
        self.interpreter.into_iter().chain(libraries).collect()
    }
}

/// The bytes at `offset`.
fn bytes<const N: usize>(file: &File, offset: Option<u64>) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset.ok_or(io::ErrorKind::InvalidData)?)?;
    Ok(bytes)
}

/// The text at `offset`, up to its zero.
fn text(file: &File, offset: Option<u64>) -> io::Result<String> {
    let mut bytes = [0; MAX_TEXT];
    let count = file.read_at(&mut bytes, offset.ok_or(io::ErrorKind::InvalidData)?)?;
    let bytes = bytes.get(..count).unwrap_or_default();
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_program_of_this_host_needs_its_libraries_and_their_loader() {
        let needs = read("/bin/sh", &mut MAX_BYTES.clone(), &[]).unwrap();
        assert!(needs.iter().any(|path| path.contains("ld-linux")), "{needs:?}");
        assert!(needs.iter().any(|path| path.ends_with("/libc.so.6")), "{needs:?}");
    }

    #[test]
    fn a_script_needs_its_interpreter_and_what_env_looks_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("script");
        std::fs::write(&path, "#! /usr/bin/env sh -e\necho\n").unwrap();
        let needs = read(path.to_str().unwrap(), &mut MAX_BYTES.clone(), &["PATH=/bin".to_owned()]).unwrap();
        assert_eq!(needs, ["/usr/bin/env", "/bin/sh"]);
    }

    #[test]
    fn nonsense_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let elf = std::fs::read("/bin/sh").unwrap();
        for length in [0, 3, 20, 64, 200, 5000] {
            let path = directory.path().join("half");
            std::fs::write(&path, &elf[..length]).unwrap();
            // Without a panic: it needs nothing, or is not understood.
            assert!(read(path.to_str().unwrap(), &mut MAX_BYTES.clone(), &[]).unwrap_or_default().len() < 2);
        }
        let mut wild = elf;
        wild.iter_mut().skip(32).step_by(3).for_each(|byte| *byte = 0xff);
        let path = directory.path().join("wild");
        std::fs::write(&path, &wild).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        read_ahead(&ReadAhead { programs: vec![path.display().to_string(), "/dev/tty".into()], path: None });
    }

    #[test]
    fn large_files_are_left_out() {
        let mut budget = 10;
        assert!(read("/bin/sh", &mut budget, &[]).unwrap().is_empty());
        assert_eq!(budget, 10);
    }
}
