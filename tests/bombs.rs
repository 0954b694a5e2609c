//! Layers that are small to fetch and would be much to unpack: refused at a stated limit, and nothing stays.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::ensure;
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::run;
use lighter_tests::lighter::Installation;
use tar::{EntryType, Header};

const UMOCI: &[Need] = &[Need::Program("umoci")];
/// The limit of all layers together (docs/images.md).
const MAX_BYTES: u64 = 64 << 30;
/// The limit of device nodes.
const MAX_DEVICES: u32 = 4096;

fn main() -> ExitCode {
    run_tests(vec![
        test("a_file_larger_than_the_limit_is_refused_before_it_is_unpacked", UMOCI, large_file),
        test("a_small_layer_with_an_endless_sparse_file_is_refused", UMOCI, sparse_file),
        test("a_device_bomb_is_refused", UMOCI, devices),
    ])
}

/// An OCI layout in `directory` with one layer; its reference.
fn image(directory: &Path, layer: &[u8]) -> anyhow::Result<String> {
    let tar = directory.join("layer.tar");
    std::fs::write(&tar, layer)?;
    let layout = directory.join("layout");
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["raw", "add-layer", "--image", &tagged]).arg(&tar))?;
    Ok(format!("oci:{tagged}"))
}

fn header(name: &str, kind: EntryType, size: u64) -> anyhow::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    Ok(header)
}

/// `run` refuses the layer in the same words, and the store stays as small as it was.
fn refused(layer: &[u8], words: &[&str]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let reference = image(directory.path(), layer)?;
    let installation = Installation::new()?;
    let output = installation.output(["run", "--rm", "--network", "none", &reference, "true"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125), "{}: {stderr}", output.status);
    ensure!(output.stdout.is_empty() && !stderr.contains("panicked"), "{stderr}");
    for word in words {
        ensure!(stderr.contains(word), "{word:?} is not said: {stderr}");
    }
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    let root = installation.root().display().to_string();
    let used = run(Command::new("du").args(["-s", "--block-size=1M", &root]))?;
    let mib: u64 = used.split_whitespace().next().unwrap_or_default().parse()?;
    ensure!(mib <= 8, "{mib} MiB stay in the store");
    Ok(())
}

/// The header says it; the bytes behind it, of which there could be that many zeros in 60 MB, do not matter.
fn large_file() -> anyhow::Result<()> {
    let mut layer = header("bomb", EntryType::Regular, MAX_BYTES + 1)?.as_bytes().to_vec();
    layer.resize(1 << 20, 0);
    refused(&layer, &["bomb", &MAX_BYTES.to_string(), "limit"])
}

/// Nothing but holes: two blocks of tar that claim more than the file system of an image can hold.
fn sparse_file() -> anyhow::Result<()> {
    let records = pax_records(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "holes"),
        ("GNU.sparse.realsize", &(1u64 << 60).to_string()),
    ]);
    let mut layer = header("pax", EntryType::XHeader, records.len() as u64)?.as_bytes().to_vec();
    layer.extend(&records);
    layer.resize(layer.len().next_multiple_of(512), 0);
    layer.extend(header("holes", EntryType::Regular, 512)?.as_bytes());
    layer.extend(b"0\n");
    layer.resize(layer.len().next_multiple_of(512) + 1024, 0);
    refused(&layer, &["holes", "larger than"])
}

/// `LENGTH NAME=VALUE\n`, the length counting itself (pax, POSIX.1-2017).
fn pax_records(records: &[(&str, &str)]) -> Vec<u8> {
    let record = |(name, value): &(&str, &str)| {
        let rest = format!(" {name}={value}\n");
        let length =
            (1..).find(|length| length.to_string().len() + rest.len() == *length).unwrap_or_default();
        format!("{length}{rest}")
    };
    records.iter().map(record).collect::<String>().into_bytes()
}

fn devices() -> anyhow::Result<()> {
    let mut layer = Vec::new();
    for number in 0..=MAX_DEVICES {
        let mut device = header(&format!("dev{number}"), EntryType::Block, 0)?;
        device.set_device_major(8)?;
        device.set_device_minor(number)?;
        device.set_cksum();
        layer.extend(device.as_bytes());
    }
    layer.resize(layer.len() + 1024, 0);
    refused(&layer, &[&format!("dev{MAX_DEVICES}"), &format!("more than {MAX_DEVICES} device nodes")])
}
