//! `/balloon/hinting`: the host asks once which pages are free.

use api_server::Fault;
use api_server::http::Response;
use api_server::wire::HintingStatus;
use devices::virtio::balloon::{BalloonControl, HintingError};

use super::fault::refused;
use super::instance::Guest;
use super::running::no_balloon;

const WHAT: &str = "Balloon hinting error";

impl Guest {
    /// `PATCH /balloon/hinting/start`
    pub fn start_hinting(&self, acknowledge: bool) -> Result<(), Fault> {
        self.hinting(|balloon| balloon.start_hinting(acknowledge))
    }

    /// `PATCH /balloon/hinting/stop`
    pub fn stop_hinting(&self) -> Result<(), Fault> {
        self.hinting(BalloonControl::stop_hinting)
    }

    /// `GET /balloon/hinting/status`
    pub fn hinting_status(&self) -> Result<Response, Fault> {
        let status = self.hinting(BalloonControl::hinting_status)?;
        Ok(Response::data(&HintingStatus { host_cmd: status.host, guest_cmd: status.guest }))
    }

    fn hinting<T>(&self, act: impl FnOnce(&BalloonControl) -> Result<T, HintingError>) -> Result<T, Fault> {
        let balloon = self.vm.balloon().ok_or_else(|| no_balloon(WHAT))?;
        act(balloon).map_err(|error| refused(WHAT, &error))
    }
}
