//! The agent's container as sessions see it.

use agent_protocol::message::{ContainerPlan, InterfacePlan, ProcessPlan, RootPlan};
use rustix::process::Pid;

use super::Container;
use crate::failure::Failure;
use crate::process::Process;
use crate::session::Ward;
use crate::{slots, tools};

impl Ward for Container {
    fn prepare(&mut self, root: &RootPlan) -> Result<(), Failure> {
        self.prepare(root)
    }

    fn start(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        self.enter(plan)?;
        self.start_main(plan)
    }

    fn exec(&mut self, plan: &ProcessPlan) -> Result<Process, Failure> {
        self.exec(plan)
    }

    fn adopt(&mut self, plan: &ContainerPlan) -> Result<Process, Failure> {
        self.adopt(plan)
    }

    fn hold(&mut self, process: Process) {
        self.hold(process);
    }

    fn release(&mut self) -> Option<Process> {
        self.release()
    }

    fn is_main(&self, pid: Pid) -> bool {
        self.is_main(pid)
    }

    fn main_ended(&mut self) {
        self.main_ended();
    }

    fn request_power_off(&mut self) {
        self.request_power_off();
    }

    fn connect(&mut self, slot: Option<u8>, interface: &InterfacePlan) -> Result<(), Failure> {
        slots::connect(slot, interface)
    }

    fn disconnect(&mut self, mac: [u8; 6]) -> Result<(), Failure> {
        slots::disconnect(mac)
    }

    fn place_for_tools(&self) -> Result<tools::Place<'_>, Failure> {
        self.place_for_tools()
    }
}
