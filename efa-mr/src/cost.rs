//! How long a registration will take: a model, fitted to published figures, not a measurement of your machine.
//!
//! Registering device memory gets slower the more of it a domain already holds, and registrations on different NICs
//! largely wait for each other inside the kernel. The published points (48 buffers of 391 MB of GPU memory on p5: 4.4 s
//! on one NIC, 17.6 s on 4, 123.7 s on 32; about 260 ms per GiB already registered when every buffer goes to all 32
//! NICs) are met by
//!
//! ```text
//! time = Σ over MRs ( per_mr + per_page × pages + per_gib_held × GiB of device memory that the domain already holds )
//! ```
//!
//! with 8.1 ms (260 ms / 32) per GiB held: 3.6 s, 14.3 s and 114 s, and 10 ms per device MR on top: 4.1 s, 16 s and 130 s.
//! Ascending sizes are cheap under this model and descending ones dear, as was reported (35.5 s against 93.3 s): the
//! held amount is small while the many small buffers are registered.
//!
//! Host memory is charged for pinning pages only. Its constants are assumptions in the right order of magnitude
//! (0.25 µs to pin and map a page, 50 µs for the call). Fit them to your machine with [`CostModel::fitted`], from the
//! timings that the registrar reports.

use std::time::Duration;

/// Constants of the registration time model; all in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CostModel {
    /// Per MR of host memory.
    pub host_mr: f64,
    /// Per MR of device memory.
    pub device_mr: f64,
    /// Per page table entry.
    pub page: f64,
    /// Per MR of device memory and GiB of device memory that its domain holds already.
    pub device_gib_held: f64,
    /// How many registrations on different domains really proceed at once. 1: the kernel serialises them.
    pub parallel: f64,
}

/// One registration as the model sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registration {
    /// Index of the NIC.
    pub nic: usize,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Page table entries.
    pub pages: u64,
    /// Whether it is device memory.
    pub device: bool,
}

impl CostModel {
    /// Fitted to the figures in the [module's description](self).
    pub const DEFAULT: Self =
        Self { host_mr: 50e-6, device_mr: 10e-3, page: 0.25e-6, device_gib_held: 0.26 / 32.0, parallel: 1.0 };

    /// Predicted time for registrations in this order, starting from domains that hold no device memory.
    ///
    /// `nics` is the number of domains; registrations on a NIC beyond it count as if its domain held nothing.
    #[must_use]
    pub fn predict(&self, nics: usize, order: impl IntoIterator<Item = Registration>) -> Duration {
        let mut held_bytes = vec![0_f64; nics];
        let mut seconds = 0.0;
        for registration in order {
            seconds += self.page * registration.pages as f64;
            if registration.device {
                seconds += self.device_mr;
                if let Some(held) = held_bytes.get_mut(registration.nic) {
                    seconds += self.device_gib_held * *held / GIB;
                    *held += registration.len_bytes as f64;
                }
            } else {
                seconds += self.host_mr;
            }
        }
        Duration::try_from_secs_f64(seconds / self.parallel.max(1.0)).unwrap_or(Duration::MAX)
    }

    /// The same model, scaled so that it would have predicted `measured` where it said `predicted`.
    #[must_use]
    pub fn fitted(&self, predicted: Duration, measured: Duration) -> Self {
        if predicted.is_zero() || measured.is_zero() {
            return *self;
        }
        let factor = measured.as_secs_f64() / predicted.as_secs_f64();
        Self {
            host_mr: self.host_mr * factor,
            device_mr: self.device_mr * factor,
            page: self.page * factor,
            device_gib_held: self.device_gib_held * factor,
            parallel: self.parallel,
        }
    }
}

impl Default for CostModel {
    fn default() -> Self {
        Self::DEFAULT
    }
}

const GIB: f64 = (1_u64 << 30) as f64;

#[cfg(test)]
mod tests {
    use super::*;

    fn published(nics: usize) -> f64 {
        let order = (0..48).flat_map(|_| {
            (0..nics).map(|nic| Registration { nic, len_bytes: 391_000_000, pages: 187, device: true })
        });
        CostModel::DEFAULT.predict(nics, order).as_secs_f64()
    }

    #[test]
    fn the_published_points_are_met_within_a_quarter() {
        for (nics, seconds) in [(1, 4.4), (4, 17.6), (32, 123.7)] {
            let ratio = published(nics) / seconds;
            assert!((0.75..1.25).contains(&ratio), "{nics} NICs: model / published = {ratio:.2}");
        }
    }

    #[test]
    fn ascending_order_is_predicted_cheaper() {
        let sizes: Vec<u64> = (0..200).map(|i| 1_000_000 * (1 + i % 50)).collect();
        let cost = |mut sizes: Vec<u64>, ascending: bool| {
            sizes.sort_unstable();
            if !ascending {
                sizes.reverse();
            }
            let order =
                sizes.into_iter().map(|len_bytes| Registration { nic: 0, len_bytes, pages: 1, device: true });
            CostModel::DEFAULT.predict(1, order)
        };
        assert!(cost(sizes.clone(), true) < cost(sizes, false));
    }

    #[test]
    fn fitting_moves_the_prediction_to_the_measurement() {
        let order = [Registration { nic: 0, len_bytes: 1 << 30, pages: 512, device: true }; 4];
        let model = CostModel::DEFAULT;
        let predicted = model.predict(1, order);
        let fitted = model.fitted(predicted, predicted * 3).predict(1, order);
        assert!((fitted.as_secs_f64() / predicted.as_secs_f64() - 3.0).abs() < 1e-6);
    }
}
