//! Requests on the API socket: bytes to a call or a refusal.
#![no_main]

use api_server::http::{self, Parsed, Response};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
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
    // Every refusal is valid JSON, whatever was sent.
    serde_json::from_slice::<serde_json::Value>(&answer.body).expect("the body is JSON");
});
