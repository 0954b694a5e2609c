//! `--memory` and `--cpus`: what the container gets, and what the VM needs for it.

/// Memory of a container where the user says nothing: what is left of a VM of 512 MiB. The guest's kernel sets its
/// memory up in blocks of 128 MiB, and one that is not whole costs more than one that is.
pub const DEFAULT_MEMORY_MIB: u32 = 473;
/// The least with which a container can be expected to run.
pub const MIN_MEMORY_MIB: u32 = 16;
/// The most that guest memory's layout was made for: 1 TiB.
const MAX_MEMORY_MIB: u64 = 1 << 20;
/// Guest kernel, agent and page tables, which come on top of what the container gets.
const KERNEL_RESERVE_MIB: u32 = 32;
/// One page structure of 64 bytes for each page of 4096.
const PAGE_STRUCT_DIVISOR: u32 = 64;
/// The most vCPUs of one VM.
pub const MAX_CPUS: u8 = 32;

/// Why a size is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// Not a number with a unit.
    #[error("--memory {0:?} is no size: write a number with an optional unit b, k, m or g, for example 256m")]
    Memory(String),
    /// Nothing runs in that.
    #[error(
        "--memory {given:?} is {mib} MiB (without a unit a number counts bytes), less than the {MIN_MEMORY_MIB} MiB that a \
         container needs at least"
    )]
    TooLittle {
        /// As written.
        given: String,
        /// In MiB, rounded down.
        mib: u64,
    },
    /// No guest is that large.
    #[error("--memory {given:?} is {mib} MiB; at most {MAX_MEMORY_MIB} MiB are possible")]
    TooMuch {
        /// As written.
        given: String,
        /// In MiB.
        mib: u64,
    },
    /// Not a number of CPUs.
    #[error("--cpus {0:?} is no number of CPUs from 1 to {MAX_CPUS}")]
    Cpus(String),
}

/// Parses `--memory` as Docker does: a number and b, k, m or g (optionally followed by b or ib), bytes without.
pub fn parse_memory(text: &str) -> Result<u32, ResourceError> {
    let bytes = parse_size(text).ok_or_else(|| ResourceError::Memory(text.to_owned()))?;
    let mib = bytes >> 20;
    let given = text.to_owned();
    match u32::try_from(mib) {
        Ok(small) if small < MIN_MEMORY_MIB => Err(ResourceError::TooLittle { given, mib }),
        Ok(fitting) if mib <= MAX_MEMORY_MIB => Ok(fitting),
        _ => Err(ResourceError::TooMuch { given, mib }),
    }
}

/// A number of bytes, as Docker writes sizes: a number and b, k, m, g or t (optionally followed by b or ib).
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number: f64 = digits.trim_end().parse().ok()?;
    if !number.is_finite() || number < 0.0 || digits.starts_with('+') {
        return None;
    }
    // A float holds every integer up to 2^53 exactly; the cast saturates.
    Some((number * (1u64 << shift) as f64) as u64)
}

/// Memory of the VM whose container gets `container_mib`.
pub fn vm_memory_mib(container_mib: u32) -> u32 {
    container_mib + KERNEL_RESERVE_MIB + container_mib / PAGE_STRUCT_DIVISOR
}

/// Parses `--cpus`: how many vCPUs that needs. A VM has whole ones; a quota holds a fraction.
pub fn parse_cpus(text: &str) -> Result<u8, ResourceError> {
    let bad = || ResourceError::Cpus(text.to_owned());
    let number: f64 = text.trim().parse().map_err(|_| bad())?;
    let whole = number.ceil();
    if !(number > 0.0 && whole <= f64::from(MAX_CPUS)) {
        return Err(bad());
    }
    Ok(whole as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_dockers_units() {
        let cases = [
            ("256m", 256),
            ("256MB", 256),
            ("256MiB", 256),
            ("1g", 1024),
            ("1.5g", 1536),
            ("536870912", 512),
            ("65536k", 64),
            ("16m", MIN_MEMORY_MIB),
        ];
        for (text, mib) in cases {
            assert_eq!(parse_memory(text), Ok(mib), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_too_little_or_too_much_is_refused() {
        for text in ["", "plenty", "m", "-1g", "1x", "+1g", "nan", "inf", "1 2m", "0x10m"] {
            assert_eq!(parse_memory(text), Err(ResourceError::Memory(text.into())), "{text}");
        }
        let error = parse_memory("4m").unwrap_err().to_string();
        assert!(error.contains("4 MiB") && error.contains("16 MiB"), "{error}");
        assert!(matches!(parse_memory("2t"), Err(ResourceError::TooMuch { .. })));
        assert!(parse_memory("1e300g").is_err());
    }

    #[test]
    fn the_vm_is_larger_than_its_container() {
        assert_eq!(vm_memory_mib(256), 256 + 32 + 4);
        assert_eq!(vm_memory_mib(DEFAULT_MEMORY_MIB), 512);
        assert!(vm_memory_mib(1 << 20) > 1 << 20);
    }

    #[test]
    fn fractions_of_cpus_are_rounded_up_and_the_range_is_kept() {
        assert_eq!(["2", "1.5", "0.25", "32"].map(|text| parse_cpus(text).unwrap()), [2, 2, 1, 32]);
        for text in ["0", "33", "-1", "32.1", "two", "nan", ""] {
            assert!(parse_cpus(text).is_err(), "{text}");
        }
    }
}
