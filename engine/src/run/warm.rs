//! The template of a run: found, or made by its first run.
//!
//! ```text
//! template of the machine (kernel and agent, once per shape) ── a clone mounts an image ──► template of the image
//!      └──► a container that starts again: its disk is not the image's any more       every new container ◄──┘
//! ```

use crate::container::Container;
use crate::dirs::Dirs;
use crate::network;
use crate::plan::Plan;
use crate::run::machine::Machine;
use crate::session::SessionError;
use crate::session::signals::Signals;
use crate::template::{Key, MakeError, Maker, Template, TemplateStore, lock};

/// Who wants a template, and what for.
#[derive(Clone, Copy)]
pub struct Warmer<'a> {
    /// The installation.
    pub dirs: &'a Dirs,
    /// The machine.
    pub machine: &'a Machine,
    /// What will run in it.
    pub plan: &'a Plan,
    /// End the making.
    pub signals: &'a Signals,
    /// Tells the user.
    pub notice: &'a dyn Fn(&str),
}

/// How much of a container a template is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Kernel and agent.
    Machine,
    /// And the image's root, with an empty writable layer.
    Image,
}

impl Warmer<'_> {
    /// The template to clone; `None` where the machine has to boot. A host that cannot keep templates is no reason not
    /// to run.
    pub fn template(&self, level: Level) -> Result<Option<Template>, MakeError> {
        match self.find_or_make(level) {
            Ok(template) => Ok(Some(template)),
            Err(error @ (MakeError::Keep { .. } | MakeError::Save(_))) => {
                (self.notice)(&format!(
                    "no template, so this start boots: {}",
                    vmm::text::with_causes(&error)
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn find_or_make(&self, level: Level) -> Result<Template, MakeError> {
        let keep = |source| MakeError::Keep { action: "look at what the template is made of", source };
        let store = TemplateStore::new(self.dirs);
        let key = Key::of(&self.machine.ingredients(self.plan, level)).map_err(keep)?;
        if let Some(template) = store.find(&key) {
            return Ok(template);
        }
        let _lock = match lock(&store, &key, self.signals)? {
            Ok(template) => return Ok(template),
            Err(lock) => lock,
        };
        for may_retry in [true, false] {
            let base = match level {
                Level::Machine => None,
                Level::Image => Some(self.find_or_make(Level::Machine)?),
            };
            match (self.make(&store, &key, level, base.as_ref()), base) {
                // The VMM refuses the machine's template: it is made anew, once.
                (Err(MakeError::Machine(SessionError::Vm(_))), Some(base)) if may_retry => {
                    store.discard(base)
                }
                (made, _) => return made,
            }
        }
        Err(MakeError::Machine(SessionError::Vm("the machine could not be cloned".to_owned())))
    }

    fn make(
        &self,
        store: &TemplateStore,
        key: &Key,
        level: Level,
        base: Option<&Template>,
    ) -> Result<Template, MakeError> {
        let host = |action| {
            move |error: Box<dyn std::error::Error + Send + Sync>| MakeError::Keep {
                action,
                source: std::io::Error::other(error),
            }
        };
        let Self { dirs, machine, plan, signals, .. } = *self;
        let container = Container::nameless(dirs)
            .map_err(|error| host("make a place for the template's machine")(error.into()))?;
        if level == Level::Image {
            machine
                .make_layer(&container, plan, None)
                .map_err(|error| host("make the template's writable layer")(error.into()))?;
        }
        let interfaces = network::detached(&container.id, machine.interfaces)
            .map_err(|error| host("make the template's interfaces")(error.into()))?;
        let mut config = machine.config(&container, plan, None, base);
        if level == Level::Machine {
            machine
                .take_media_out(&mut config, &container)
                .map_err(|error| host("make the template's empty drives")(error.into()))?;
        }
        let root = (level == Level::Image).then(|| (plan.root(), plan.read_ahead().clone()));
        Maker { container: &container, program: machine.vmm(), config, interfaces, root, signals }
            .make(store, key)
    }
}
