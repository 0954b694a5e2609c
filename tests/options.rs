//! Options of `lighter run`, read back in the guest: many in one boot.

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::Installation;

/// CAP_NET_BIND_SERVICE and CAP_SYS_TIME (capability.h).
const BIND_AND_TIME: u64 = 1 << 10 | 1 << 25;
/// Docker's fourteen.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const CAP_CHOWN: u64 = 1;

fn main() -> ExitCode {
    run_tests(vec![
        test("options_are_what_the_process_sees", &[Need::Kvm], as_root),
        test("a_user_has_its_groups_and_no_capabilities", &[Need::Kvm], as_user),
        test("options_that_make_no_sense_are_refused", &[], nonsense),
    ])
}

/// Each line `NAME VALUE` that the script prints.
fn guest(options: &[&str], script: &str) -> anyhow::Result<HashMap<String, String>> {
    let image = busybox_reference()?;
    let mut args = vec!["run", "--rm", "--network", "none"];
    args.extend(options);
    args.extend([&image, "sh", "-c", script]);
    let stdout = Installation::shared()?.stdout(args)?;
    let pair = |line: &str| {
        line.split_once([' ', ':', '\t']).map(|(name, value)| (name.into(), value.trim().into()))
    };
    Ok(stdout.lines().filter_map(pair).collect())
}

fn mask(seen: &HashMap<String, String>, name: &str) -> anyhow::Result<u64> {
    let text = seen.get(name).with_context(|| format!("no {name} in {seen:?}"))?;
    Ok(u64::from_str_radix(text, 16)?)
}

fn same(seen: &HashMap<String, String>, expected: &[(&str, &str)]) -> anyhow::Result<()> {
    for (name, value) in expected {
        ensure!(seen.get(*name).map(String::as_str) == Some(value), "{name} is not {value:?}: {seen:#?}");
    }
    Ok(())
}

fn as_root() -> anyhow::Result<()> {
    let env_file = tempfile::NamedTempFile::new()?;
    std::fs::write(env_file.path(), "# comment\n\nFIRST=from file\nSECOND=from file\nWITH=a=b\n")?;
    let env_file = env_file.path().display().to_string();
    let options = [
        ["--cap-drop", "ALL"],
        ["--cap-add", "NET_BIND_SERVICE"],
        ["--cap-add", "CAP_SYS_TIME"],
        ["--ulimit", "nofile=2000:3000"],
        ["--ulimit", "core=0"],
        ["--dns", "192.0.2.53"],
        ["--add-host", "db:192.0.2.7"],
        ["--add-host", "six:[2001:db8::7]"],
        ["--env-file", &env_file],
        ["-e", "SECOND=from option"],
        ["-w", "/made/on/the/way"],
        ["--hostname", "barge.example"],
    ];
    let script = "grep ^Cap /proc/self/status
        echo soft $(ulimit -Sn); echo hard $(ulimit -Hn); echo core $(ulimit -c)
        echo dns $(cat /etc/resolv.conf)
        echo db $(grep -w db /etc/hosts); echo six $(grep -w six /etc/hosts); echo own $(grep barge /etc/hosts)
        echo first $FIRST; echo second $SECOND; echo with $WITH
        echo pwd $(pwd); echo mode $(stat -c '%a %u' .); echo hostname $(hostname) $HOSTNAME";
    let seen = guest(options.as_flattened(), script)?;
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        ensure!(mask(&seen, set)? == BIND_AND_TIME, "{set}: {seen:#?}");
    }
    ensure!(mask(&seen, "CapAmb")? == 0, "{seen:#?}");
    same(
        &seen,
        &[
            ("soft", "2000"),
            ("hard", "3000"),
            ("core", "0"),
            ("dns", "nameserver 192.0.2.53"),
            ("db", "192.0.2.7 db"),
            ("six", "2001:db8::7 six"),
            ("own", "127.0.1.1 barge.example"),
            ("first", "from file"),
            ("second", "from option"),
            ("with", "a=b"),
            ("pwd", "/made/on/the/way"),
            ("mode", "755 0"),
            ("hostname", "barge.example barge.example"),
        ],
    )
}

fn as_user() -> anyhow::Result<()> {
    let options =
        ["-u", "user", "--group-add", "77", "--cap-drop", "CHOWN", "--security-opt", "no-new-privileges"];
    let script = "grep -e ^Cap -e ^NoNewPrivs -e ^Groups /proc/self/status
        echo uid $(id -u); echo gid $(id -g); echo name $(id -un); echo home $HOME; echo umask $(umask)";
    let seen = guest(&options, script)?;
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        ensure!(mask(&seen, set)? == 0, "{set}: {seen:#?}");
    }
    ensure!(mask(&seen, "CapBnd")? == DEFAULT_CAPABILITIES & !CAP_CHOWN, "{seen:#?}");
    same(
        &seen,
        &[
            ("Groups", "50 77 1000"),
            ("NoNewPrivs", "1"),
            ("uid", "1000"),
            ("gid", "1000"),
            ("name", "user"),
            ("home", "/home/user"),
            ("umask", "0022"),
        ],
    )
}

/// Each is named in the error, with exit code 125, before any machine starts.
fn nonsense() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let cases = [
        ["--cap-add", "FLY"],
        ["--cap-drop", "FLY"],
        ["--ulimit", "nofile"],
        ["--ulimit", "nofile=9:3"],
        ["--ulimit", "wishes=3"],
        ["--dns", "not-an-address"],
        ["--add-host", "db"],
        ["--add-host", "db:nowhere"],
        ["--hostname", "a b"],
        ["-w", "relative"],
        ["-e", "=x"],
        ["--cpus", "-1"],
        ["--security-opt", "wishful"],
        ["--name", "a/b"],
    ];
    for [option, value] in cases {
        let args = ["run", "--rm", "--network", "none", option, value, &image, "true"];
        let output = Installation::shared()?.output(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(125), "{option} {value}: {}: {stderr}", output.status);
        ensure!(stderr.contains(value) && !stderr.contains("panicked"), "{option} {value}: {stderr}");
        ensure!(output.stdout.is_empty(), "{option} {value} prints on stdout");
    }
    Ok(())
}
