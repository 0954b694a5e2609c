//! Images in and out: `lighter tag`, `history`, `push`, `save`, `load` and `import`.

use std::fs::File;
use std::io::{IsTerminal as _, Read, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use engine::dirs::Dirs;
use engine::intake;
use images::commit::{Change, CommitOptions, LayerCompression};
use images::fetch::{self, FetchLimits};
use images::pull::{LoadFrom, PullPolicy};
use images::push::PushOptions;
use images::save::ArchiveKind;
use images::{Platform, Reference, Store, history};
use serde_json::json;

use crate::args::RegistryArgs;
use crate::image_commands::familiar;
use crate::output::{self, Format};
use crate::progress::Bars;

/// `lighter tag`
#[derive(Args)]
pub struct TagArgs {
    /// Name or ID
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The name that it gets beside those that it has
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Reference,
}

/// `lighter history`
#[derive(Args)]
pub struct HistoryArgs {
    /// Show commands whole
    #[arg(long)]
    pub no_trunc: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Name or ID
    pub image: String,
}

/// `lighter push`
#[derive(Args)]
pub struct PushArgs {
    /// How to talk to the registry.
    #[command(flatten)]
    pub registry: RegistryArgs,
    /// Print only the digest
    #[arg(short, long)]
    pub quiet: bool,
    /// How to print
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
    /// Name or ID
    pub image: String,
    /// Where it goes [default: the registry of its name]
    pub destination: Option<Reference>,
}

/// `lighter save`
#[derive(Args)]
pub struct SaveArgs {
    /// Write to this file [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What kind of archive
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub format: Kind,
    /// Names or IDs
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

/// `save --format`
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Kind {
    /// What `docker load` and `podman load` read
    #[default]
    DockerArchive,
    /// An OCI image layout in a tar file
    OciArchive,
}

/// `lighter load`
#[derive(Args)]
pub struct LoadArgs {
    /// The archive, or a directory with an OCI image layout [default: stdin]
    #[arg(short, long, value_name = "PATH")]
    pub input: Option<PathBuf>,
    /// Platform to choose from a multi-platform image [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// `lighter import`
#[derive(Args)]
pub struct ImportArgs {
    /// What the new image says of itself.
    #[command(flatten)]
    pub edit: EditArgs,
    /// Platform of the programs in it [default: the host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<Platform>,
    /// A tar file (plain, gzip or zstd) whose root is the image's, or its address, http://… or https://…; - for stdin
    pub file: PathBuf,
    /// The image's name [default: its ID]
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<Reference>,
}

/// What a new image says of itself: `commit` and `import`.
#[derive(Args)]
pub struct EditArgs {
    /// A Dockerfile instruction that edits the configuration, such as 'CMD ["sh"]' or 'ENV A=1'
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<Change>,
    /// Shown by `history`
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// How the layer is compressed
    #[arg(long, value_enum, default_value_t, value_name = "METHOD")]
    pub compression: Method,
}

/// `--compression`
#[derive(Clone, Copy, Default, ValueEnum)]
pub enum Method {
    /// Runs everywhere
    #[default]
    Gzip,
    /// Smaller and faster; Docker 23 and newer
    Zstd,
}

impl EditArgs {
    /// For the image store.
    pub fn commit_options(self) -> CommitOptions {
        CommitOptions {
            compression: match self.compression {
                Method::Gzip => LayerCompression::Gzip,
                Method::Zstd => LayerCompression::Zstd,
            },
            changes: self.change,
            message: self.message,
            ..CommitOptions::default()
        }
    }
}

/// Gives an image one more name.
pub fn tag(dirs: &Dirs, args: &TagArgs) -> anyhow::Result<()> {
    Ok(Store::open(&dirs.data)?.tag(&args.image, &args.name)?)
}

/// Prints how an image was built.
pub fn history(dirs: &Dirs, args: &HistoryArgs) -> anyhow::Result<()> {
    let image = Store::open(&dirs.data)?.image(&args.image)?;
    let steps = history::of(&image);
    if args.format == Format::Json {
        return output::print_json(
            &json!({"schema": "lighter.history.v1", "name": image.name, "steps": steps}),
        );
    }
    let rows = steps
        .into_iter()
        .map(|step| (step.created, step.created_by, step.layer.map_or(0, |layer| layer.size), step.comment));
    print_history(rows, args.no_trunc)
}

/// A step of a build: when, by which command, bytes of its layer, a comment.
pub type HistoryRow = (Option<String>, Option<String>, u64, Option<String>);

/// Prints how an image was built as a table.
pub fn print_history(rows: impl Iterator<Item = HistoryRow>, no_trunc: bool) -> anyhow::Result<()> {
    /// Characters of a command that are shown.
    const SHOWN: usize = 60;
    let mut table = output::table(&["CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    for (created, created_by, size, comment) in rows {
        let line: String = created_by.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        let shown: String = match no_trunc || line.chars().count() <= SHOWN {
            true => line,
            false => line.chars().take(SHOWN - 1).chain(['…']).collect(),
        };
        let created = created.unwrap_or_default();
        let seconds = created.split(['.', 'Z']).next().unwrap_or_default().replace('T', " ");
        table.add_row([seconds, shown, output::human_size(size), comment.unwrap_or_default()]);
    }
    output::print_table(&table)
}

/// Puts an image into a registry and prints its digest.
pub fn push(dirs: &Dirs, args: &PushArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    let registry = args.registry.pull_options(PullPolicy::Never)?.registry;
    let options = PushOptions { registry, ..PushOptions::default() };
    let bars = Bars::new();
    let pushed = store.push(&args.image, args.destination.as_ref(), &options, &bars);
    bars.clear();
    let pushed = pushed?;
    match (args.format, args.quiet) {
        (Format::Json, _) => output::print_json(&json!({"schema": "lighter.push.v1", "pushed": pushed})),
        (Format::Table, true) => output::print(&format!("{}\n", pushed.digest)),
        (Format::Table, false) => output::print(&format!(
            "{}: digest: {} size: {}\n",
            familiar(&pushed.name),
            pushed.digest,
            pushed.size
        )),
    }
}

/// Writes images to one archive.
pub fn save(dirs: &Dirs, args: &SaveArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    let kind = match args.format {
        Kind::DockerArchive => ArchiveKind::Docker,
        Kind::OciArchive => ArchiveKind::Oci,
    };
    match &args.output {
        Some(path) => Ok(store.save_file(&args.images, kind, path)?),
        None => {
            ensure!(!stdout().is_terminal(), "an archive is nothing for a terminal: use -o FILE, or a pipe");
            Ok(store.save(&args.images, kind, &mut stdout().lock())?)
        }
    }
}

/// Brings all images of an archive into the store and prints their names.
pub fn load(dirs: &Dirs, args: &LoadArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    let mut options = images::PullOptions::default();
    if let Some(platform) = &args.platform {
        options.platform = platform.clone();
    }
    let from = match &args.input {
        Some(path) => LoadFrom::Path(path),
        None => {
            ensure!(!stdin().is_terminal(), "nothing to load: use -i FILE, or a pipe");
            LoadFrom::Stream("stdin")
        }
    };
    let bars = Bars::new();
    let loaded = intake::load(&store, &from, &mut stdin(), &options, &bars);
    bars.clear();
    for image in loaded? {
        if !args.quiet {
            output::print(&format!("Loaded image: {}\n", familiar(&image.name)))?;
        }
    }
    Ok(())
}

/// Makes an image of a tar archive and prints its ID.
pub fn import(dirs: &Dirs, args: ImportArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    let mut file: Box<dyn Read + Send> = if args.file == Path::new("-") {
        ensure!(!stdin().is_terminal(), "nothing to import: name a file, or use a pipe");
        Box::new(stdin())
    } else if let Some(url) = args.file.to_str().filter(|text| fetch::is_url(text)) {
        Box::new(fetch::open(url, FetchLimits::default())?)
    } else {
        Box::new(File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?)
    };
    let mut options = args.edit.commit_options();
    options.message.get_or_insert_with(|| format!("Imported from {}", args.file.display()));
    let platform = args.platform.unwrap_or_else(Platform::host);
    let image = store.import(&mut *file, args.name.as_ref(), &platform, &options)?;
    output::print(&format!("{}\n", image.config_digest))
}
