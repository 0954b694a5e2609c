//! Everything that is parsed from start to end: frames, documents, archives, files.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use agent_protocol::frame::Decoder;
use agent_protocol::message::{AgentMessage, HostMessage};
use api_server::http::{self, Parsed, Response};
use images::erofs::{DataWriter, ImageOptions, write_image};
use images::manifest::{Document, parse_config};
use images::unpack::{Layer, Limits, unpack};
use images::{DiffId, Digest};

/// Bytes that one layer of an input may unpack to, and its entries.
const LIMITS: Limits = Limits { unpacked_bytes: 8 << 20, entries: 2000 };
/// Guest memory for kernels in MiB.
const MEM_SIZE_MIB: u32 = 64;

/// Frames of an agent that a hostile guest runs, and of a host.
pub fn agent(bytes: &[u8]) {
    fn decode<M: for<'de> serde::Deserialize<'de>>(bytes: &[u8]) {
        let mut decoder = Decoder::default();
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        for part in [head, tail] {
            decoder.push(part);
            // A message needs at least its length and its version.
            for _ in 0..=bytes.len() / 5 + 1 {
                match decoder.next_message::<M>() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => return drop(error.to_string()),
                }
            }
        }
    }
    decode::<AgentMessage>(bytes);
    decode::<HostMessage>(bytes);
    // The same as the body of one frame, of whatever version this is.
    let length = u32::try_from(bytes.len() + 1).unwrap().to_le_bytes();
    let frame = [&length[..], &[agent_protocol::PROTOCOL_VERSION], bytes].concat();
    decode::<AgentMessage>(&frame);
    decode::<HostMessage>(&frame);
}

/// A manifest or index, and the configuration of an image.
pub fn manifest(bytes: &[u8]) {
    match Document::parse(bytes) {
        Ok(Document::Manifest(manifest)) => {
            manifest.layer_bytes();
            assert!(manifest.blobs().count() == manifest.layers.len() + 1);
        }
        Ok(Document::Index(entries)) => {
            images::Platform::host().select(&entries);
        }
        Err(error) => drop(error.to_string()),
    }
    let _ = parse_config(bytes, 1).map_err(|error| error.to_string());
    let _ = images::healthcheck::Healthcheck::of(bytes);
}

/// A layer, plain or compressed, into an image.
pub fn layer(bytes: &[u8]) {
    // Its digest is right where it is not compressed.
    let layer = Layer {
        name: "layer".into(),
        diff_id: DiffId(Digest::of(bytes)),
        source: Box::new(std::io::Cursor::new(bytes.to_vec())),
    };
    let mut image = Vec::new();
    let mut data = DataWriter::new(&mut image);
    match unpack(vec![layer], &mut data, &LIMITS, &mut |_| ()) {
        Ok(mut tree) => {
            let _ = write_image(&mut tree, data, ImageOptions::default());
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Requests on the API socket: bytes to a call or a refusal, which is always JSON.
pub fn api(bytes: &[u8]) {
    let answer = match http::parse(bytes, 51_200) {
        Ok(Parsed::Partial { .. }) => return,
        Ok(Parsed::Complete(request, len)) => {
            assert!(len <= bytes.len());
            match api_server::route(&request) {
                Ok(_) => return,
                Err(fault) => Response::from(fault),
            }
        }
        Err(error) => Response::from(&error),
    };
    serde_json::from_slice::<serde_json::Value>(&answer.body).expect("the body is JSON");
}

/// A kernel image, in the head of a larger file so that segments further on are there, and as it is.
pub fn kernel(bytes: &[u8]) {
    for len in [bytes.len() as u64, 1 << 20] {
        let memory = vmm::memory::allocate(MEM_SIZE_MIB).unwrap();
        let file: File = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(len.max(bytes.len() as u64)).unwrap();
        match arch::kernel::load(&memory, &file) {
            Ok(kernel) => {
                assert!(kernel.end <= u64::from(MEM_SIZE_MIB) << 20, "{kernel:?}");
                kernel.cmdline_max();
                let _ = arch::initrd::load(&memory, &file, kernel.end, kernel.initrd_limit());
            }
            Err(error) => drop(error.to_string()),
        }
    }
}

/// The configuration of a VM.
pub fn config(bytes: &[u8]) {
    match serde_json::from_slice::<vmm::config::VmConfig>(bytes) {
        Ok(config) => {
            let text = serde_json::to_vec(&config).unwrap();
            serde_json::from_slice::<vmm::config::VmConfig>(&text).expect("what was read can be read again");
        }
        Err(error) => drop(error.to_string()),
    }
}
