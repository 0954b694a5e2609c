//! The event loop's side of polling: it looks at a device instead of being told.

use super::MmioTransport;

impl MmioTransport {
    /// Begins to poll the device; false if it is not active or not to be polled.
    pub fn start_polling(&self) -> bool {
        let mut pollable = false;
        self.process(|device| {
            pollable = device.is_pollable();
            if pollable { device.set_polled(true) } else { Ok(()) }
        });
        self.tell_changes();
        pollable
    }

    /// Lets the device work on what is there; true if there was something.
    pub fn poll(&self) -> bool {
        let mut worked = false;
        self.process(|device| {
            worked = device.poll()?;
            Ok(())
        });
        if worked {
            self.tell_changes();
        }
        worked
    }

    /// Polls no more: the driver notifies again.
    pub fn stop_polling(&self) {
        self.process(|device| device.set_polled(false));
        self.tell_changes();
    }

    /// Lets the device finish what the host still does for it. The vCPUs are stopped.
    pub fn quiesce(&self) {
        self.process(|device| device.quiesce());
    }

    /// Whoever calls the device otherwise asks for its descriptors afterwards; here they are announced.
    fn tell_changes(&self) {
        let mut inner = self.lock();
        if inner.device.host_events_changed() {
            self.activity_changed(&mut inner);
        }
    }
}
