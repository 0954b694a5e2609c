//! The template of a run: found, or made by its first run.

use crate::container::Container;
use crate::dirs::Dirs;
use crate::network;
use crate::plan::Plan;
use crate::run::machine::Machine;
use crate::session::signals::Signals;
use crate::template::{Key, MakeError, Maker, Template, TemplateStore, lock};

/// The template to clone; `None` where the machine has to boot. A host that cannot keep templates is no reason not to
/// run.
pub fn template(
    dirs: &Dirs,
    cold: bool,
    machine: &Machine,
    plan: &Plan,
    signals: &Signals,
    notice: &dyn Fn(&str),
) -> Result<Option<Template>, MakeError> {
    if cold {
        return Ok(None);
    }
    let keep = |source| MakeError::Keep { action: "look at what the template is made of", source };
    let store = TemplateStore::new(dirs);
    let made = Key::of(&machine.ingredients(plan)).map_err(keep).and_then(|key| match store.find(&key) {
        Some(template) => Ok(template),
        None => make(dirs, &store, &key, machine, plan, signals),
    });
    match made {
        Ok(template) => Ok(Some(template)),
        Err(error @ (MakeError::Keep { .. } | MakeError::Save(_))) => {
            notice(&format!("no template, so this start boots: {}", vmm::text::with_causes(&error)));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn make(
    dirs: &Dirs,
    store: &TemplateStore,
    key: &Key,
    machine: &Machine,
    plan: &Plan,
    signals: &Signals,
) -> Result<Template, MakeError> {
    let _lock = match lock(store, key, signals)? {
        Ok(template) => return Ok(template),
        Err(lock) => lock,
    };
    let host = |action| {
        move |error: Box<dyn std::error::Error + Send + Sync>| MakeError::Keep {
            action,
            source: std::io::Error::other(error),
        }
    };
    let container = Container::nameless(dirs)
        .map_err(|error| host("make a place for the template's machine")(error.into()))?;
    machine
        .make_layer(&container, plan, None)
        .map_err(|error| host("make the template's writable layer")(error.into()))?;
    let interfaces = network::detached(&container.id, machine.interfaces)
        .map_err(|error| host("make the template's interfaces")(error.into()))?;
    let config = machine.config(&container, plan, None, None);
    Maker { container: &container, program: &machine.program, config, interfaces, root: plan.root(), signals }
        .make(store, key)
}
