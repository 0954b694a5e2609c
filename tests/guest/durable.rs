//! Writes a file, makes it durable and says so, then goes on writing another one that is never synced.
//! Argument: directory.

use std::io::Write;
use std::path::PathBuf;

fn main() {
    let directory = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "/".into()));
    let mut kept = std::fs::File::create(directory.join("kept")).expect("kept");
    // Few system calls: each takes milliseconds where ring 0 is emulated.
    for thousand in 0..20 {
        let lines = thousand * 1000..(thousand + 1) * 1000;
        let text: String = lines.map(|line| format!("line {line:08}\n")).collect();
        kept.write_all(text.as_bytes()).expect("write");
        kept.sync_data().expect("fdatasync");
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
