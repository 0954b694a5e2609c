//! Whoever carries out what a session's host asks for: the agent's container in a guest, or a warden on the host.

use agent_protocol::message::{ContainerPlan, InterfacePlan, ProcessPlan, RootPlan, Usage};
use rustix::process::Pid;

use crate::failure::Failure;
use crate::process::Process;
use crate::{tools, usage};

/// One container and its processes.
pub trait Ward {
    /// Makes the container's root, with everything in it that no plan decides.
    fn prepare(&mut self, root: &RootPlan) -> Result<(), Failure>;
    /// Starts the main process; once.
    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure>;
    /// Starts one more process.
    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure>;
    /// Goes on as the container of `plan`, whose main process was held.
    fn adopt(&mut self, plan: &ContainerPlan) -> Result<Process, Failure>;
    /// Keeps the main process for whoever wants it next.
    fn hold(&mut self, process: Process);
    /// Gives the held process back.
    fn release(&mut self) -> Option<Process>;
    /// Whether `pid` is the main process.
    fn is_main(&self, pid: Pid) -> bool;
    /// The main process is gone, or could not be started.
    fn main_ended(&mut self);
    /// The host wants the end.
    fn request_power_off(&mut self);
    /// Where tools find the container's files.
    fn place_for_tools(&self) -> Result<tools::Place<'_>, Failure>;
    /// Brings up an interface, after it came into slot `slot` if there is one.
    fn connect(&mut self, slot: Option<u8>, interface: &InterfacePlan) -> Result<(), Failure>;
    /// Lets go of the interface with the hardware address `mac`.
    fn disconnect(&mut self, mac: [u8; 6]) -> Result<(), Failure>;
    /// What the container's memory is used for.
    fn usage(&self) -> Result<Usage, Failure> {
        usage::read()
    }
}
