//! What a client can want, and when.
//!
//! ```text
//!            Actions InstanceStart, PUT /snapshot/load
//! BeforeStart ────────────────────────────────────────► Started
//! ```

use crate::fault::Fault;
use crate::wire::{
    Balloon, BalloonStatsUpdate, BalloonUpdate, BootSource, Drive, DriveUpdate, Entropy, HintingStart,
    Logger, MachineUpdate, MemoryHotplug, MemoryHotplugUpdate, Metrics, MmdsConfig, NetworkInterface,
    NetworkInterfaceUpdate, Pmem, PmemUpdate, Serial, SnapshotCreate, SnapshotLoad, Vsock,
};

/// Where in its life a VMM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is being configured.
    BeforeStart,
    /// There is a VM, running or paused.
    Started,
}

/// Devices that come and go by their IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// `/drives`
    Drive,
    /// `/network-interfaces`
    Net,
    /// `/pmem`
    Pmem,
}

/// One thing that a client wants.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is named after its path, see `router`")]
pub enum Call {
    GetInstance,
    GetVersion,
    GetConfig,
    GetMachine,
    GetBalloon,
    GetBalloonStats,
    GetHinting,
    GetMmds,
    GetMemoryHotplug,
    SetBootSource(BootSource),
    SetMachine(MachineUpdate),
    SetCpu(serde_json::Value),
    SetDrive(Drive),
    SetNet(NetworkInterface),
    SetPmem(Pmem),
    SetVsock(Vsock),
    SetEntropy(Entropy),
    SetSerial(Serial),
    SetBalloon(Balloon),
    SetMemoryHotplug(MemoryHotplug),
    SetMmdsConfig(MmdsConfig),
    SetLogger(Logger),
    SetMetrics(Metrics),
    Start,
    LoadSnapshot(SnapshotLoad),
    CreateSnapshot(SnapshotCreate),
    Pause,
    Resume,
    SendCtrlAltDel,
    FlushMetrics,
    UpdateDrive(DriveUpdate),
    UpdateNet(NetworkInterfaceUpdate),
    UpdatePmem(PmemUpdate),
    UpdateBalloon(BalloonUpdate),
    UpdateBalloonStats(BalloonStatsUpdate),
    StartHinting(HintingStart),
    StopHinting,
    UpdateMemoryHotplug(MemoryHotplugUpdate),
    PutMmds(serde_json::Value),
    PatchMmds(serde_json::Value),
    Unplug(DeviceKind, String),
}

impl Call {
    /// Refuses what does not fit the phase.
    pub fn check(&self, phase: Phase) -> Result<(), Fault> {
        match (self.only_in(), phase) {
            (Some(Phase::BeforeStart), Phase::Started) => {
                Err(Fault::new("The requested operation is not supported after starting the microVM."))
            }
            (Some(Phase::Started), Phase::BeforeStart) => {
                Err(Fault::new("The requested operation is not supported before starting the microVM."))
            }
            _ => Ok(()),
        }
    }

    /// The only phase that it fits, if it does not fit both.
    fn only_in(&self) -> Option<Phase> {
        match self {
            Call::GetInstance
            | Call::GetVersion
            | Call::GetConfig
            | Call::GetMachine
            | Call::GetBalloon
            | Call::GetMmds
            | Call::PutMmds(_)
            | Call::PatchMmds(_) => None,
            Call::SetBootSource(_)
            | Call::SetMachine(_)
            | Call::SetCpu(_)
            | Call::SetDrive(_)
            | Call::SetNet(_)
            | Call::SetPmem(_)
            | Call::SetVsock(_)
            | Call::SetEntropy(_)
            | Call::SetSerial(_)
            | Call::SetBalloon(_)
            | Call::SetMemoryHotplug(_)
            | Call::SetMmdsConfig(_)
            | Call::SetLogger(_)
            | Call::SetMetrics(_)
            | Call::Start
            | Call::LoadSnapshot(_) => Some(Phase::BeforeStart),
            Call::GetBalloonStats
            | Call::GetHinting
            | Call::GetMemoryHotplug
            | Call::CreateSnapshot(_)
            | Call::Pause
            | Call::Resume
            | Call::SendCtrlAltDel
            | Call::FlushMetrics
            | Call::UpdateDrive(_)
            | Call::UpdateNet(_)
            | Call::UpdatePmem(_)
            | Call::UpdateBalloon(_)
            | Call::UpdateBalloonStats(_)
            | Call::StartHinting(_)
            | Call::StopHinting
            | Call::UpdateMemoryHotplug(_)
            | Call::Unplug(..) => Some(Phase::Started),
        }
    }
}
