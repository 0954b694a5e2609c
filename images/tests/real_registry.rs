//! Pulling from and pushing to Debian's `docker-registry`, with images that `umoci` made, against `skopeo`. Loopback only.
//!
//! A test whose programs are missing is counted as ignored, with the reason, never as passed.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use images::auth::Keychain;
use images::commit::{CommitOptions, LayerCompression};
use images::push::PushOptions;
use images::registry::RegistryOptions;
use images::save::ArchiveKind;
use images::{Image, PullError, PullOptions, PullPolicy, Silent, Store};
use libtest_mimic::{Arguments, Failed, Trial};

type Outcome = Result<(), Failed>;

/// A name and what runs under it.
type Test = (&'static str, fn() -> Outcome);

/// What every test needs.
const PROGRAMS: [&str; 4] = ["docker-registry", "skopeo", "umoci", "openssl"];

/// Set for the process that [`killed`] kills: the store and the name to pull.
const VICTIM: &str = "LIGHTER_TEST_VICTIM";

fn main() {
    if let Ok(task) = std::env::var(VICTIM) {
        let (store, name) = task.split_once(' ').expect("a store and a name");
        let store = Store::open(store).expect("a store");
        store.pull(&name.parse().expect("a name"), &PullOptions::default(), &Silent).expect("a pull");
        return;
    }
    let arguments = Arguments::from_args();
    let tests: [Test; 11] = [
        ("images_in_both_formats_are_pulled_as_they_were_pushed", both_formats),
        ("zstd_layers_are_pulled", zstd_layers),
        ("a_password_is_asked_for_and_found", password),
        ("a_certificate_has_to_be_trusted", certificate),
        ("a_pull_killed_at_any_moment_leaves_a_store_that_works", killed),
        ("archives_of_skopeo_give_the_image_of_the_registry", archives),
        ("what_is_pushed_is_what_skopeo_and_lighter_pull", pushed),
        ("a_push_logs_in_and_says_so_if_it_cannot", push_password),
        ("a_layer_of_another_repository_is_mounted", mounted),
        ("saved_archives_are_read_by_skopeo", saved),
        ("a_committed_layer_is_unpacked_by_umoci_and_counted_by_skopeo", committed),
    ];
    let lacking = PROGRAMS.into_iter().find(|program| !in_path(program));
    let trials = tests.into_iter().map(|(name, run)| {
        let trial = Trial::test(name, run);
        match lacking {
            Some(program) => trial.with_ignored_flag(true).with_kind(format!("skipped: no {program}")),
            None => trial,
        }
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn both_formats() -> Outcome {
    let bench = Bench::new()?;
    let registry = bench.registry("")?;
    for format in ["oci", "v2s2"] {
        let name = format!("{}/test/{format}:1", registry.address);
        bench.push(&name, &["--format", format])?;
        let image = bench.pull(&name)?;
        let manifest = run(Command::new("skopeo")
            .args(["inspect", "--raw", "--tls-verify=false"])
            .arg(format!("docker://{name}")))?;
        check(image.manifest_digest == images::Digest::of(manifest.as_bytes()), "another manifest")?;
        check(image.layers().len() == 2, "two layers")?;
        check(image.process().cmd().clone().unwrap_or_default() == ["/bin/hello"], "the command")?;
    }
    let listed = bench.store.images()?;
    check(listed.len() == 2 && listed[0].manifest != listed[1].manifest, "both are listed")?;
    // An unchanged tag of a real registry: its digest is asked for, nothing else.
    let name = format!("{}/test/oci:1", registry.address);
    let options = PullOptions { policy: PullPolicy::Always, ..bench.options.clone() };
    bench.store.pull(&name.parse()?, &options, &Silent)?;
    drop(registry);
    bench.pull(&name)?;
    check(bench.store.pull(&name.parse()?, &options, &Silent).is_err(), "the registry is gone")
}

fn zstd_layers() -> Outcome {
    let bench = Bench::new()?;
    let registry = bench.registry("")?;
    let name = format!("{}/zstd", registry.address);
    bench.push(&name, &["--dest-compress-format", "zstd", "--format", "oci"])?;
    let image = bench.pull(&name)?;
    for layer in image.layers() {
        check(layer.compression == images::Compression::Zstd, &layer.media_type)?;
        let tar = zstd::decode_all(std::fs::File::open(layer.path())?)?;
        check(images::Digest::of(&tar) == layer.diff_id.0, "the diff ID")?;
    }
    Ok(())
}

fn password() -> Outcome {
    let mut bench = Bench::new()?;
    let registry = bench.private_registry()?;
    let name = format!("{}/private", registry.address);
    bench.push(&name, &["--dest-creds", "user:secret"])?;
    let error = bench.pull(&name).err().map(|error| error.to_string()).unwrap_or_default();
    check(error.contains("login"), &error)?;
    bench.log_in(&registry)?;
    bench.pull(&name)?;
    Ok(())
}

fn pushed() -> Outcome {
    let bench = Bench::new()?;
    let registry = bench.registry("")?;
    for format in ["oci", "v2s2"] {
        let origin = format!("{}/origin/{format}:1", registry.address);
        bench.push(&origin, &["--format", format])?;
        let pulled = bench.pull(&origin)?;
        // A second registry, so that nothing is there already.
        let other = Registry::start(&bench.path(&format!("other-{format}")), "")?;
        let target = format!("{}/deep/er/{format}:2", other.address);
        let sent = bench.store.push(&origin, Some(&target.parse()?), &bench.push_options(), &Silent)?;
        check(sent.digest == pulled.manifest_digest && sent.sent > 0, "another digest")?;
        let inspect = ["inspect", "--raw", "--tls-verify=false"];
        let manifest = run(Command::new("skopeo").args(inspect).arg(format!("docker://{target}")))?;
        check(images::Digest::of(manifest.as_bytes()) == sent.digest, "skopeo sees another manifest")?;
        let layout = bench.path(&format!("copied-{format}"));
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
            .args([format!("docker://{target}"), format!("oci:{}:x", layout.display())]))?;
        let other_store = Store::open(bench.path(&format!("store-{format}")))?;
        let again = other_store.pull(&target.parse()?, &bench.options, &Silent)?;
        check(again.chain_id() == pulled.chain_id(), "another image")?;
        let nothing = bench.store.push(&origin, Some(&target.parse()?), &bench.push_options(), &Silent)?;
        check(nothing.sent == 0, "what is there was sent again")?;
    }
    Ok(())
}

fn push_password() -> Outcome {
    let mut bench = Bench::new()?;
    let registry = bench.private_registry()?;
    let local = format!("oci:{}:latest", bench.layout.display());
    bench.pull(&local)?;
    let target = format!("{}/private:1", registry.address).parse()?;
    let refused = bench.store.push(&local, Some(&target), &bench.push_options(), &Silent);
    let refused = refused.err().map(|error| error.to_string()).unwrap_or_default();
    check(refused.contains("login"), &refused)?;
    bench.log_in(&registry)?;
    bench.store.push(&local, Some(&target), &bench.push_options(), &Silent)?;
    bench.pull(&target.to_string())?;
    Ok(())
}

fn mounted() -> Outcome {
    let bench = Bench::new()?;
    let registry = bench.registry("")?;
    let origin = format!("{}/team/base:1", registry.address);
    bench.push(&origin, &[])?;
    bench.pull(&origin)?;
    let target = format!("{}/team/app:1", registry.address);
    let sent = bench.store.push(&origin, Some(&target.parse()?), &bench.push_options(), &Silent)?;
    check(sent.sent == 0, "a layer that the registry has was sent")?;
    let other = Store::open(bench.path("other"))?;
    other.pull(&target.parse()?, &bench.options, &Silent)?;
    Ok(())
}

fn saved() -> Outcome {
    let bench = Bench::new()?;
    let local = format!("oci:{}:latest", bench.layout.display());
    let image = bench.pull(&local)?;
    let names = ["127.0.0.1:5000/one:1".to_owned(), "127.0.0.1:5000/two:2".to_owned()];
    for name in &names {
        bench.store.tag(&local, &name.parse()?)?;
    }
    for (kind, transport) in [(ArchiveKind::Docker, "docker-archive"), (ArchiveKind::Oci, "oci-archive")] {
        let path = bench.path(transport);
        bench.store.save_file(&names, kind, &path)?;
        for name in &names {
            let copy = bench.path(&format!("{transport}-{}", name.len() + usize::from(name.ends_with('2'))));
            run(Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet"])
                .arg(format!("{transport}:{}:{name}", path.display()))
                .arg(format!("oci:{}:x", copy.display())))?;
            let other = Store::open(bench.path("copies"))?;
            let copied =
                other.pull(&format!("oci:{}:x", copy.display()).parse()?, &bench.options, &Silent)?;
            check(copied.chain_id() == image.chain_id(), transport)?;
            check(copied.process() == image.process(), transport)?;
        }
    }
    Ok(())
}

fn committed() -> Outcome {
    let bench = Bench::new()?;
    let local = format!("oci:{}:latest", bench.layout.display());
    let base = bench.pull(&local)?;
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in [("new/file", "new"), (".wh.lower", "")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        tar.append_data(&mut header, path, content.as_bytes())?;
    }
    let tar = tar.into_inner()?;
    for (compression, word) in [(LayerCompression::Gzip, "gzip"), (LayerCompression::Zstd, "zstd")] {
        let options = CommitOptions {
            compression,
            changes: vec!["CMD [\"/new/file\"]".parse()?],
            message: Some("round trip".into()),
            ..CommitOptions::default()
        };
        let name = format!("127.0.0.1:5000/mine:{word}");
        bench.store.commit(&base, &mut &*tar, Some(&name.parse()?), &options)?;
        let path = bench.path(word);
        bench.store.save_file(std::slice::from_ref(&name), ArchiveKind::Oci, &path)?;
        let layout = bench.path(&format!("layout-{word}"));
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet"])
            .arg(format!("oci-archive:{}:{name}", path.display()))
            .arg(format!("oci:{}:x", layout.display())))?;
        let inspected = run(Command::new("skopeo")
            .args(["inspect", "--config"])
            .arg(format!("oci:{}:x", layout.display())))?;
        check(inspected.contains("round trip") && inspected.contains("/new/file"), &inspected)?;
        if compression == LayerCompression::Zstd {
            // Umoci knows no zstd; skopeo has just copied, and so verified, it.
            continue;
        }
        let bundle = bench.path(&format!("bundle-{word}"));
        run(Command::new("umoci")
            .args(["unpack", "--rootless", "--image", &format!("{}:x", layout.display())])
            .arg(&bundle))?;
        let root = bundle.join("rootfs");
        check(std::fs::read_to_string(root.join("new/file"))? == "new", "the new file")?;
        check(root.join("upper").exists() && !root.join("lower").exists(), "the whiteout")?;
    }
    Ok(())
}

fn certificate() -> Outcome {
    let mut bench = Bench::new()?;
    let (key, cert) = (bench.path("tls.key"), bench.path("tls.crt"));
    run(Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=lighter test", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert))?;
    let tls = format!("  tls: {{certificate: {}, key: {}}}", cert.display(), key.display());
    let registry = bench.registry(&tls)?;
    let name = format!("{}/tls", registry.address);
    bench.push(&name, &[])?;
    let error = bench.pull(&name).err().map(|error| error.to_string()).unwrap_or_default();
    check(error.contains("certs.d") && error.contains("--tls-verify=false"), &error)?;

    let trusting = bench.path("certs.d");
    std::fs::create_dir_all(trusting.join(&registry.address))?;
    std::fs::copy(&cert, trusting.join(&registry.address).join("ca.crt"))?;
    bench.options.registry.certs_dirs = vec![trusting];
    bench.pull(&name)?;

    bench.options.registry.certs_dirs.clear();
    bench.options.registry.tls_verify = false;
    bench.options.policy = PullPolicy::Always;
    bench.pull(&name)?;
    Ok(())
}

fn archives() -> Outcome {
    let bench = Bench::new()?;
    let registry = bench.registry("")?;
    let name = format!("{}/app:1", registry.address);
    bench.push(&name, &[])?;
    let pulled = bench.pull(&name)?;
    let targets = [
        format!("oci-archive:{}:v1", bench.path("oci.tar").display()),
        format!("docker-archive:{}:{name}", bench.path("docker.tar").display()),
        format!("oci:{}:v1", bench.path("copy").display()),
    ];
    for target in targets {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"])
            .args([&format!("docker://{name}"), &target]))?;
        let imported = bench.pull(&target)?;
        check(imported.chain_id() == pulled.chain_id(), &target)?;
        check(imported.process() == pulled.process(), &target)?;
    }
    Ok(())
}

fn killed() -> Outcome {
    let bench = Bench::new()?;
    // 48 MiB that do not compress, so that there is a middle to be killed in.
    let big = bench.path("big");
    let cipher =
        format!("head -c 48M /dev/zero | openssl enc -aes-128-ctr -pass pass:x -nosalt > {}", big.display());
    run(Command::new("sh").args(["-c", &cipher]))?;
    run(Command::new("umoci")
        .args(["insert", "--rootless", "--image", &format!("{}:latest", bench.layout.display())])
        .arg(&big)
        .arg("/big"))?;
    let registry = bench.registry("")?;
    let name = format!("{}/big", registry.address);
    bench.push(&name, &[])?;
    let partial = bench.store.root().join("blobs/partial");
    let left = || -> std::io::Result<u64> {
        std::fs::read_dir(&partial)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
    };
    let mut broken = 0;
    for round in 0..8 {
        let mut victim = Command::new(std::env::current_exe()?)
            .env(VICTIM, format!("{} {name}", bench.store.root().display()))
            .stderr(Stdio::null())
            .spawn()?;
        // Each victim gets a little further than the one before it.
        let goal = round * (6 << 20);
        while victim.try_wait()?.is_none() && left().unwrap_or(0) < goal {
            std::thread::sleep(Duration::from_micros(200));
        }
        victim.kill()?;
        victim.wait()?;
        broken += u32::from(left()? > 0);
        bench.store.images()?;
    }
    check(broken > 0, "no victim was killed in the middle")?;
    let image = bench.pull(&name)?;
    for layer in image.layers() {
        check(images::Digest::of(&std::fs::read(layer.path())?) == layer.digest, "a layer is damaged")?;
    }
    check(left()? == 0, "nothing is left half done")
}

/// An image, a store, and room for files.
struct Bench {
    dir: tempfile::TempDir,
    layout: PathBuf,
    store: Store,
    options: PullOptions,
}

impl Bench {
    fn new() -> Result<Self, Failed> {
        let dir = tempfile::tempdir()?;
        let layout = dir.path().join("layout");
        let image = format!("{}:latest", layout.display());
        run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
        run(Command::new("umoci").args(["new", "--image", &image]))?;
        for text in ["lower", "upper"] {
            let file = dir.path().join(text);
            std::fs::write(&file, text.repeat(10_000))?;
            run(Command::new("umoci")
                .args(["insert", "--rootless", "--image", &image])
                .arg(&file)
                .arg(format!("/{text}")))?;
        }
        run(Command::new("umoci").args(["config", "--image", &image, "--config.cmd", "/bin/hello"]))?;
        let registry = RegistryOptions {
            keychain: Keychain::default(),
            certs_dirs: Vec::new(),
            ..RegistryOptions::default()
        };
        let store = Store::open(dir.path().join("store"))?;
        Ok(Self { layout, store, options: PullOptions { registry, ..PullOptions::default() }, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A registry; `more` is YAML below `http:` if it is indented, else beside it.
    fn registry(&self, more: &str) -> Result<Registry, Failed> {
        Registry::start(&self.dir.path().join("registry"), more)
    }

    /// A registry for `user` with the password `secret`.
    fn private_registry(&self) -> Result<Registry, Failed> {
        /// By bcrypt.
        const HTPASSWD: &str = "user:$2b$04$fIh2z8kyhhS72ggApHgW7OcKASNIwjG.wqFIh4zLvnpOfSFBMEaAe\n";
        let htpasswd = self.path("htpasswd");
        std::fs::write(&htpasswd, HTPASSWD)?;
        self.registry(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}", htpasswd.display()))
    }

    /// Writes Podman's file, as `skopeo login` does, and uses it from now on.
    fn log_in(&mut self, registry: &Registry) -> Outcome {
        let auth_file = self.path("auth.json");
        run(Command::new("skopeo")
            .args(["login", "--tls-verify=false", "--username", "user", "--password", "secret", "--authfile"])
            .arg(&auth_file)
            .arg(&registry.address))?;
        self.options.registry.keychain = Keychain { files: vec![auth_file], ..Keychain::default() };
        Ok(())
    }

    fn push_options(&self) -> PushOptions {
        PushOptions { registry: self.options.registry.clone(), ..PushOptions::default() }
    }

    fn push(&self, name: &str, options: &[&str]) -> Outcome {
        run(Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            .args(options)
            .arg(format!("oci:{}:latest", self.layout.display()))
            .arg(format!("docker://{name}")))?;
        Ok(())
    }

    fn pull(&self, name: &str) -> Result<Image, PullError> {
        self.store.pull(&name.parse().expect("a name made here"), &self.options, &Silent)
    }
}

/// A registry on loopback, ended on drop.
struct Registry {
    address: String,
    process: Child,
}

impl Registry {
    fn start(dir: &Path, more: &str) -> Result<Self, Failed> {
        std::fs::create_dir_all(dir)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = dir.join("config.yml");
        let storage = format!("storage: {{filesystem: {{rootdirectory: {}}}}}", dir.join("data").display());
        std::fs::write(
            &config,
            format!("version: 0.1\nlog: {{level: error}}\n{storage}\nhttp:\n  addr: {address}\n{more}\n"),
        )?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { address, process };
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(&registry.address).is_err() {
            check(Instant::now() < deadline, "docker-registry does not answer")?;
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; then the test has failed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn check(holds: bool, what: &str) -> Outcome {
    if holds { Ok(()) } else { Err(what.to_owned().into()) }
}

fn run(command: &mut Command) -> Result<String, Failed> {
    let output = command.output().map_err(|error| format!("cannot run {command:?}: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?} ended with {}: {stderr}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
