//! A CPU template: what a guest's processors have otherwise than KVM would give it. Firecracker's format.
//!
//! Bitmaps are as wide as their register, or shorter, in binary: `x` leaves a bit, `_` is for the eye.

use std::fmt;

use kvm_bindings::{Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use serde::de::{Deserialize, Deserializer, Error as _};
use vmm_sys_util::errno;

/// Most modifiers of a kind. Stops a client from filling memory and KVM's tables.
const MAX_MODIFIERS: usize = 256;

/// Why this host cannot have processors of a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A capability is missing.
    #[error("this host's KVM lacks capability {0}, which the CPU template asks for")]
    Capability(u32),
    /// A leaf is missing.
    #[error(
        "the CPU template changes CPUID leaf {leaf:#x}, subleaf {subleaf:#x}, which this host's KVM does not have"
    )]
    Leaf {
        /// In EAX.
        leaf: u32,
        /// In ECX.
        subleaf: u32,
    },
    /// An MSR cannot be read or not have that value.
    #[error("the CPU template changes MSR {index:#x}, which this host's KVM refuses")]
    Msr {
        /// Its number.
        index: u32,
        /// What KVM said.
        source: errno::Error,
    },
}

/// `PUT /cpu-config`
#[derive(Clone, Debug, Default, serde::Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct CpuTemplate {
    /// What KVM must be able to do.
    kvm_capabilities: Few<Capability>,
    /// Changes of CPUID.
    cpuid_modifiers: Few<LeafModifier>,
    /// Changes of MSRs.
    msr_modifiers: Few<MsrModifier>,
}

/// At most [`MAX_MODIFIERS`].
#[derive(Clone, Debug, PartialEq, Eq)]
struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Vec::deserialize(deserializer)?;
        if all.len() > MAX_MODIFIERS {
            return Err(D::Error::custom(format_args!("{} entries, at most {MAX_MODIFIERS}", all.len())));
        }
        Ok(Few(all))
    }
}

/// `"171"` is needed; `"!171"` need not be there, and nothing that lighter needs can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Capability {
    Needed(u32),
    Dispensable,
}

#[derive(Clone, Debug, serde::Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct LeafModifier {
    leaf: Number,
    subleaf: Number,
    /// KVM_CPUID_FLAG_*
    flags: u32,
    modifiers: Few<RegisterModifier>,
}

#[derive(Clone, Copy, Debug, serde::Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct RegisterModifier {
    register: Register,
    bitmap: Bitmap<32>,
}

#[derive(Clone, Copy, Debug, serde::Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

#[derive(Clone, Copy, Debug, serde::Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct MsrModifier {
    addr: Number,
    bitmap: Bitmap<64>,
}

/// A number as text: `0x` and hexadecimal digits, `0b` and binary ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number(u32);

/// Bits of a register of `WIDTH` bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bitmap<const WIDTH: usize> {
    /// That are set or cleared.
    mask: u64,
    /// That are set.
    value: u64,
}

impl<const WIDTH: usize> Bitmap<WIDTH> {
    fn apply(self, old: u64) -> u64 {
        old & !self.mask | self.value
    }
}

impl CpuTemplate {
    /// Whether `kvm` has every capability that is asked for.
    pub fn check(&self, kvm: &Kvm) -> Result<(), TemplateError> {
        self.kvm_capabilities.0.iter().try_for_each(|capability| match *capability {
            Capability::Needed(number) if kvm.check_extension_raw(number.into()) <= 0 => {
                Err(TemplateError::Capability(number))
            }
            _ => Ok(()),
        })
    }

    /// Changes `entries`.
    pub fn shape(&self, entries: &mut [kvm_cpuid_entry2]) -> Result<(), TemplateError> {
        for modifier in &self.cpuid_modifiers.0 {
            let (leaf, subleaf) = (modifier.leaf.0, modifier.subleaf.0);
            let entry = entries.iter_mut().find(|entry| (entry.function, entry.index) == (leaf, subleaf));
            let entry = entry.ok_or(TemplateError::Leaf { leaf, subleaf })?;
            entry.flags = modifier.flags;
            for RegisterModifier { register, bitmap } in &modifier.modifiers.0 {
                let place = match register {
                    Register::Eax => &mut entry.eax,
                    Register::Ebx => &mut entry.ebx,
                    Register::Ecx => &mut entry.ecx,
                    Register::Edx => &mut entry.edx,
                };
                *place = bitmap.apply((*place).into()) as u32;
            }
        }
        Ok(())
    }

    /// Changes the MSRs of a vCPU that has its CPUID.
    pub fn set_msrs(&self, vcpu: &VcpuFd) -> Result<(), TemplateError> {
        for MsrModifier { addr: Number(index), bitmap } in self.msr_modifiers.0.iter().copied() {
            let refused = |source| TemplateError::Msr { index, source };
            let none = || refused(errno::Error::new(libc::EINVAL));
            let one = |data| {
                let entry = kvm_msr_entry { index, data, ..Default::default() };
                Msrs::from_entries(&[entry]).map_err(|_| none())
            };
            let mut msrs = one(0)?;
            let read = vcpu.get_msrs(&mut msrs).map_err(refused)?;
            let old = msrs.as_slice().first().filter(|_| read == 1).ok_or_else(none)?.data;
            if vcpu.set_msrs(&one(bitmap.apply(old))?).map_err(refused)? != 1 {
                return Err(none());
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "the number of a KVM capability, maybe after a `!`", |text| {
            let number: u32 = text.strip_prefix('!').unwrap_or(text).parse().ok()?;
            Some(if text.starts_with('!') { Capability::Dispensable } else { Capability::Needed(number) })
        })
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, "a number of 32 bits that begins with 0x or 0b", |text| {
            let (digits, radix) = match text.strip_prefix("0x") {
                Some(digits) => (digits, 16),
                None => (text.strip_prefix("0b")?, 2),
            };
            u32::from_str_radix(digits, radix).ok().map(Number)
        })
    }
}

impl<'de, const WIDTH: usize> Deserialize<'de> for Bitmap<WIDTH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer, format_args!("0b and at most {WIDTH} of 0, 1 and x"), |text| {
            let digits = text.strip_prefix("0b").unwrap_or(text);
            let mut bitmap = Bitmap::default();
            let mut count = 0;
            for digit in digits.bytes().filter(|digit| *digit != b'_') {
                let (mask, value) = match digit {
                    b'0' => (1, 0),
                    b'1' => (1, 1),
                    b'x' => (0, 0),
                    _ => return None,
                };
                (bitmap.mask, bitmap.value) = (bitmap.mask << 1 | mask, bitmap.value << 1 | value);
                count += 1;
            }
            (count <= WIDTH).then_some(bitmap)
        })
    }
}

/// What `parse` makes of a string, which is `wanted`.
fn parsed<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    wanted: impl fmt::Display,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format_args!("{text:?} is not {wanted}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: serde_json::Value) -> Result<CpuTemplate, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn bits_are_set_cleared_and_left() {
        let template = template(json!({
            "kvm_capabilities": ["171", "!172"],
            "cpuid_modifiers": [{
                "leaf": "0x1", "subleaf": "0b0", "flags": 1,
                "modifiers": [
                    {"register": "eax", "bitmap": "0b01x"},
                    {"register": "edx", "bitmap": "0bxxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxx0"},
                ],
            }],
        }));
        let template = template.unwrap();
        let entry = |leaf| kvm_cpuid_entry2 { function: leaf, eax: 0b1101, edx: !0, ..Default::default() };
        let mut entries = [entry(0), entry(1)];
        template.shape(&mut entries).unwrap();
        assert_eq!((entries[0].eax, entries[0].edx, entries[0].flags), (0b1101, !0, 0));
        assert_eq!((entries[1].eax, entries[1].edx, entries[1].flags), (0b1011, !1, 1));
        assert!(template.shape(&mut [entry(7)]).unwrap_err().to_string().contains("leaf 0x1, subleaf 0x0"));
    }

    #[test]
    fn what_is_no_template_is_refused_with_the_reason() {
        let leaf = |leaf: &str, register: &str, bitmap: &str| {
            let modifiers = json!([{"register": register, "bitmap": bitmap}]);
            json!({"cpuid_modifiers": [{"leaf": leaf, "subleaf": "0x0", "flags": 0, "modifiers": modifiers}]})
        };
        for (value, why) in [
            (json!({"kvm_capabilities": [171]}), "invalid type"),
            (json!({"kvm_capabilities": ["x"]}), "\"x\" is not the number of a KVM capability"),
            (json!({"msr_modifiers": [{"addr": "16", "bitmap": "0b0"}]}), "begins with 0x or 0b"),
            (json!({"msr_modifiers": [{"addr": "0x1ffffffff", "bitmap": "0b0"}]}), "32 bits"),
            (json!({"msr_modifiers": [{"addr": "0x10", "bitmap": "0b2"}]}), "at most 64"),
            (json!({"msr_modifiers": [{"addr": "0x10"}]}), "missing field"),
            (leaf("0x1", "rax", "0b0"), "unknown variant"),
            (leaf("0x1", "eax", &"0".repeat(33)), "at most 32"),
            (json!({"vcpu_features": []}), "unknown field"),
            (json!({"kvm_capabilities": vec!["1"; 257]}), "257 entries, at most 256"),
        ] {
            let message = template(value.clone()).unwrap_err();
            assert!(message.contains(why), "{value}: {message}");
        }
        assert_eq!(template(json!({})), Ok(CpuTemplate::default()));
        assert_eq!(template(leaf("0x1", "eax", &"1".repeat(32))).map(drop), Ok(()));
    }
}
