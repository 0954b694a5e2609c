//! The first hour of a Docker tutorial with `lighter` in place of `docker`: docs/tutorial.md, step by step.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lighter_tests::harness::{Need, main as run_tests, test};
use lighter_tests::image::{make_busybox, run};
use lighter_tests::lighter::{GUEST_DEADLINE, Installation};
use lighter_tests::namespace::Namespace;
use lighter_tests::registry::Registry;

const NEEDS: &[Need] = &[
    Need::Kvm,
    Need::Root,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("umoci"),
    Need::Program("nft"),
    Need::Program("curl"),
];

fn main() -> ExitCode {
    run_tests(vec![test("the_first_hour", NEEDS, first_hour)])
}

/// An image with a web server, in the registry under the name of the tutorial.
fn web_image(registry: &Registry, directory: &Path) -> anyhow::Result<String> {
    let (root, layout) = (directory.join("root"), directory.join("layout"));
    make_busybox(&root)?;
    std::fs::create_dir(root.join("www"))?;
    std::fs::write(root.join("www/index.html"), "It works\n")?;
    let tagged = format!("{}:latest", layout.display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &tagged]))?;
    run(Command::new("umoci").args(["insert", "--image", &tagged]).arg(&root).arg("/"))?;
    let config = ["--config.cmd=httpd", "--config.cmd=-f", "--config.cmd=-h", "--config.cmd=/www"];
    run(Command::new("umoci").args(["config", "--image", &tagged]).args(config))?;
    registry.push(&format!("oci:{tagged}"), "library/web:1")
}

/// Asks again until the server answers with `wanted`: it runs before it listens.
fn fetched(namespace: &Namespace, url: &str, wanted: &str) -> anyhow::Result<()> {
    let end = Instant::now() + GUEST_DEADLINE;
    loop {
        let answer = namespace.command(&["curl", "-s", "-m", "20", url]).output()?.stdout;
        if answer == wanted.as_bytes() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{url} gave {:?}", String::from_utf8_lossy(&answer));
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn first_hour() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let installation = Installation::new()?;
    let namespace = Namespace::new()?;
    let before = namespace.inventory()?;
    let registry = Registry::start_in(&namespace)?;
    let web = web_image(&registry, directory.path())?;
    let lighter = |args: &[&str]| namespace.stdout(&installation, args);

    // Images.
    lighter(&["pull", &web])?;
    ensure!(lighter(&["images"])?.contains("library/web:1"));
    ensure!(lighter(&["run", "--rm", &web, "echo", "hello"])? == "hello\n");

    // A server and its port.
    lighter(&["run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", &web])?;
    ensure!(lighter(&["ps"])?.contains("127.0.0.1:8080->80/tcp"));
    fetched(&namespace, "http://127.0.0.1:8080/", "It works\n")?;

    // A shell in it, its files, its log.
    lighter(&["exec", "web", "sh", "-c", "echo changed > /www/index.html"])?;
    fetched(&namespace, "http://127.0.0.1:8080/", "changed\n")?;
    let page = directory.path().join("page");
    std::fs::write(&page, "copied\n")?;
    lighter(&["cp", page.to_str().context("a path that is no text")?, "web:/www/index.html"])?;
    fetched(&namespace, "http://127.0.0.1:8080/", "copied\n")?;
    ensure!(lighter(&["diff", "web"])?.contains("C /www/index.html"));
    lighter(&["logs", "web"])?;

    // Stopped and started again, its files are still there.
    lighter(&["stop", "-t", "1", "web"])?;
    lighter(&["start", "web"])?;
    fetched(&namespace, "http://127.0.0.1:8080/", "copied\n")?;

    // What outlives a container.
    lighter(&["volume", "create", "pages"])?;
    lighter(&["run", "--rm", "-v", "pages:/www", &web, "sh", "-c", "echo kept > /www/index.html"])?;
    ensure!(lighter(&["run", "--rm", "-v", "pages:/www:ro", &web, "cat", "/www/index.html"])? == "kept\n");
    let here = format!("{}:/here", directory.path().display());
    ensure!(lighter(&["run", "--rm", "-v", &here, &web, "ls", "/here"])?.contains("page"));
    lighter(&["volume", "rm", "pages"])?;

    // An image of its own, pushed and run from the registry.
    let mine = format!("{}/library/mine:1", registry.address);
    lighter(&["commit", "-m", "another page", "web", &mine])?;
    lighter(&["push", &mine])?;
    lighter(&["rm", "-f", "web"])?;
    lighter(&["rmi", &mine])?;

    // Two services that find each other by name.
    lighter(&["network", "create", "app"])?;
    lighter(&["run", "-d", "--name", "shop", "--network", "app", &mine])?;
    let script = "until wget -q -O - http://shop/; do sleep 1; done";
    ensure!(lighter(&["run", "--rm", "--network", "app", &web, "sh", "-c", script])? == "copied\n");

    // Tidying up.
    lighter(&["rm", "-f", "shop"])?;
    lighter(&["network", "rm", "app"])?;
    ensure!(lighter(&["ps", "-aq"])?.is_empty());
    ensure!(installation.leftovers()?.is_empty(), "left behind: {:?}", installation.leftovers()?);
    let after = namespace.inventory()?;
    ensure!(after == before, "interfaces or rules are left:\n{after}");
    Ok(())
}
