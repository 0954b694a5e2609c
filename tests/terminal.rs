//! `lighter run -it` on a real terminal, and what insisting on the end does, with a terminal and without.

use std::io::{BufRead, BufReader};
use std::process::{Child, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::busybox_reference;
use lighter_tests::lighter::{GUEST_DEADLINE, Installation, finish};
use lighter_tests::pty::Pty;
use rustix::process::{Pid, Signal, kill_process};

/// Between two signals, so that the second is not taken for the first.
const APART: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    run_tests(vec![
        test("a_terminal_is_carried_both_ways_and_comes_back_as_it_was", &[Need::Kvm], session),
        test(
            "a_terminal_comes_back_as_it_was_after_insisting_on_the_end",
            &[Need::Kvm],
            insisted_on_terminal,
        ),
        test("ctrl_c_three_times_ends_a_guest_that_ignores_it", &[Need::Kvm], insisted),
        test("a_terminal_is_wanted_where_t_is_given", &[Need::Kvm], no_terminal),
    ])
}

fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let end = Instant::now() + GUEST_DEADLINE;
    while Instant::now() < end {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    bail!("lighter did not end within {GUEST_DEADLINE:?}")
}

/// What is expected is never what was typed, which the terminal echoes.
fn session() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let mut terminal = Pty::open(33, 91)?;
    let before = format!("{:?}", terminal.modes()?);
    let mut child =
        terminal.spawn(&installation.command(["run", "--rm", "-it", "--network", "none", &image, "sh"]))?;
    let mut talk = |typed: &str, expected: &str| -> anyhow::Result<()> {
        terminal.type_in(typed)?;
        terminal.expect(expected, GUEST_DEADLINE)
    };
    talk("", "# ")?;
    talk("echo size $(stty size) $TERM; tty\r", "size 33 91 xterm\r\n/dev/pts/0\r\n")?;
    // A resize reaches the guest's terminal, and its foreground process by SIGWINCH.
    talk(
        "sh -c 'trap \"echo now \\$(stty size); exit\" WINCH; echo wait-$((1+1)); while :; do sleep 0.2; done'\r",
        "wait-2",
    )?;
    terminal.resize(20, 70)?;
    terminal.expect("now 20 70", GUEST_DEADLINE)?;
    // Ctrl-C is a byte here and a signal there.
    ensure!(terminal.is_raw()?, "the caller's terminal is not raw while the guest has it");
    terminal.type_in("sh -c 'echo asleep-$((1+1)); exec sleep 1000'\r")?;
    terminal.expect("asleep-2", GUEST_DEADLINE)?;
    terminal.type_in("\x03")?;
    terminal.type_in("echo code-$?\r")?;
    terminal.expect("code-130", GUEST_DEADLINE)?;
    ensure!(child.try_wait()?.is_none(), "Ctrl-C ended lighter");
    terminal.type_in("exit 42\r")?;
    let status = wait(&mut child)?;
    ensure!(status.code() == Some(42), "{status}");
    let after = format!("{:?}", terminal.modes()?);
    ensure!(before == after, "the terminal was {before} and is {after}");
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// Takes no hint, and says when it is ready for one.
const DEAF: &str = "trap '' INT TERM; echo deaf-$((1+1)); while :; do sleep 1; done";

/// Two signals are handed on, the third is the end.
fn insist(child: &mut Child, signal: Signal) -> anyhow::Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("no pid")?;
    for _ in 0..2 {
        kill_process(pid, signal)?;
        std::thread::sleep(APART);
    }
    ensure!(child.try_wait()?.is_none(), "two signals ended lighter, though the process ignores them");
    Ok(kill_process(pid, signal)?)
}

fn insisted_on_terminal() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let mut terminal = Pty::open(24, 80)?;
    let before = format!("{:?}", terminal.modes()?);
    let args = ["run", "--rm", "-it", "--network", "none", &image, "sh", "-c", DEAF];
    let mut child = terminal.spawn(&installation.command(args))?;
    terminal.expect("deaf-2", GUEST_DEADLINE)?;
    ensure!(terminal.is_raw()?, "the caller's terminal is not raw while the guest has it");
    insist(&mut child, Signal::TERM)?;
    let status = wait(&mut child)?;
    ensure!(status.code() == Some(137), "{status}");
    let after = format!("{:?}", terminal.modes()?);
    ensure!(before == after, "the terminal was {before} and is {after}");
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

fn insisted() -> anyhow::Result<()> {
    let installation = Installation::new()?;
    let image = busybox_reference()?;
    let args = ["run", "--rm", "--network", "none", &image, "sh", "-c", DEAF];
    let mut child = installation.command(args).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
    ensure!(line == "deaf-2\n", "the guest said {line:?}");
    insist(&mut child, Signal::INT)?;
    let output = finish(child, GUEST_DEADLINE)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(137), "{}: {stderr}", output.status);
    let left = installation.leftovers()?;
    ensure!(left.is_empty(), "left behind: {left:?}");
    Ok(())
}

/// A pipe is no terminal, and that is said before anything is started.
fn no_terminal() -> anyhow::Result<()> {
    let image = busybox_reference()?;
    let output = Installation::new()?.output(["run", "--rm", "-it", "--network", "none", &image, "true"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(125) && stderr.contains("-t"), "{}: {stderr}", output.status);
    Ok(())
}
