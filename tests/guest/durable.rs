//! Writes a file, makes it durable and says so, then goes on writing another one that is never synced.
//! Argument: directory.

use std::io::Write;
use std::path::PathBuf;

fn main() {
    let directory = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "/".into()));
    let mut kept = std::fs::File::create(directory.join("kept")).expect("kept");
    for line in 0..20_000 {
        writeln!(kept, "line {line:08}").expect("write");
        if line % 1000 == 0 {
            kept.sync_data().expect("fdatasync");
        }
    }
    kept.sync_all().expect("fsync");
    std::fs::File::open(&directory).and_then(|d| d.sync_all()).expect("fsync of the directory");
    println!("durable");
    let mut lost = std::fs::File::create(directory.join("unsynced")).expect("unsynced");
    loop {
        lost.write_all(&[0x55; 4096]).expect("write");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
