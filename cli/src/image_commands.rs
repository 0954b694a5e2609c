//! `lighter pull`, `images`, `rmi` and `image inspect`.

use anyhow::Context as _;
use engine::dirs::Dirs;
use engine::intake;
use engine::verbs;
use images::pull::PullPolicy;
use images::{Contents, Image, ImageSource, ImageSummary, Store};
use serde_json::json;

use crate::args::{InspectArgs, ListArgs, PullArgs, RemoveArgs};
use crate::output::{self, Format};
use crate::progress::Bars;
use crate::times::age;

/// Fetches an image and prints its name.
pub fn pull(dirs: &Dirs, args: &PullArgs) -> anyhow::Result<()> {
    let source: ImageSource =
        args.image.parse().with_context(|| format!("cannot use the image name {:?}", args.image))?;
    let store = Store::open(&dirs.data)?;
    let bars = Bars::new();
    let options = args.signature.restrict(args.registry.pull_options(PullPolicy::Always)?)?;
    let image = intake::pull(&store, &source, &options, &bars)?;
    let built = args.unpack.then(|| intake::ensure_rootfs(&store, &image, &bars)).transpose()?;
    bars.clear();
    match args.format {
        Format::Table => output::print(&format!("{}\n", image.name)),
        Format::Json => output::print_json(&json!({
            "schema": "lighter.pull.v1", "name": image.name, "id": image.config_digest,
            "manifest": image.manifest_digest, "size": image.size(), "rootfs": built,
        })),
    }
}

/// Lists what is in the store.
pub fn list(dirs: &Dirs, args: &ListArgs) -> anyhow::Result<()> {
    let images = Store::open(&dirs.data)?.images()?;
    if args.format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.images.v1", "images": images}));
    }
    let id = |image: &ImageSummary| match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.short().to_owned(),
    };
    if args.quiet {
        return output::print(&images.iter().map(|image| id(image) + "\n").collect::<String>());
    }
    let mut table = output::table(&["NAME", "ID", "PLATFORM", "PULLED", "SIZE"]);
    for image in &images {
        table.add_row([
            familiar(&image.name),
            id(image),
            image.platform.clone(),
            format!("{} ago", age(image.pulled_at.saturating_mul(1_000_000_000))),
            output::human_size(image.size),
        ]);
    }
    output::print_table(&table)
}

/// Removes images and what only they need.
pub fn remove(dirs: &Dirs, args: &RemoveArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    for name in &args.images {
        let removed = verbs::remove_image(dirs, &store, name, args.force)?;
        output::print(&format!("untagged {}\n", removed.untagged))?;
        if removed.collected.deferred {
            output::notice("the store is in use; `lighter system prune` frees the space later");
        }
    }
    Ok(())
}

/// Prints all that is known of images.
pub fn inspect(dirs: &Dirs, args: &InspectArgs) -> anyhow::Result<()> {
    let store = Store::open(&dirs.data)?;
    let images = args
        .images
        .iter()
        .map(|name| Ok(described(&store.image(name)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    if args.format == Format::Json {
        return output::print_json(&json!({"schema": "lighter.image.v1", "images": images}));
    }
    let mut table = output::table(&["NAME", "ID", "SIZE"]);
    for image in &images {
        let text = |key: &str| image.get(key).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        let size = image.get("size").and_then(serde_json::Value::as_u64).unwrap_or_default();
        table.add_row([text("name"), text("id"), output::human_size(size)]);
    }
    output::print_table(&table)
}

/// All that is known of an image.
pub fn described(image: &Image) -> serde_json::Value {
    let layers: Vec<_> = image
        .layers()
        .iter()
        .map(|layer| {
            json!({"digest": layer.digest, "diff_id": layer.diff_id, "media_type": layer.media_type,
                "size": layer.size})
        })
        .collect();
    let chain_id = match &image.contents {
        Contents::Layers { chain_id, .. } => Some(chain_id),
        Contents::Directory(_) => None,
    };
    json!({"name": image.name, "id": image.config_digest, "manifest": image.manifest_digest,
        "chain_id": chain_id, "size": image.size(), "layers": layers, "config": image.config})
}

/// The name as people type it.
pub fn familiar(name: &str) -> String {
    match name.parse::<ImageSource>() {
        Ok(ImageSource::Registry(reference)) => reference.familiar(),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_people_type_them() {
        assert_eq!(familiar("docker.io/library/alpine:3.20"), "alpine:3.20");
        assert_eq!(familiar("oci:/srv/layout"), "oci:/srv/layout");
    }
}
