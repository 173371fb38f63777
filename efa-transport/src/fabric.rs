//! A fabric that is open: its lanes, one for each card, and the registrar of their domains.

use std::ops::Range;
use std::sync::Arc;

use efa_mr::ledger::Ledger;
use efa_mr::registrar::Registrar;
use efa_mr::registrar::fabric::nic_of;
use fabric_safe::{Domain, Endpoint, Info};

use crate::config::Config;
use crate::error::Error;
use crate::lane::{Lane, Seat};
use crate::nic::Nic;
use crate::provider::{Rejected, fabric_of, nic_name};
use crate::scheduler::fabric::{Device, Offer};
use crate::scheduler::rail::Pace;
use crate::slice::LONGEST;

/// A fabric over all our cards.
pub(crate) struct OpenFabric {
    /// libfabric's name for it where that says how endpoints talk; elsewhere empty.
    pub(crate) name: String,
    /// What the cards do by themselves.
    pub(crate) device: Device,
    /// The numbers of its lanes.
    pub(crate) range: Range<usize>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) registrar: Registrar<Domain>,
    /// Of the fastest NIC.
    pub(crate) fastest: Pace,
    /// Bytes of immediates.
    pub(crate) immediate_bytes: usize,
    /// Bytes of the longest operation.
    pub(crate) longest: u64,
}

impl OpenFabric {
    /// Opens the NICs; those that cannot be opened are left out, unless all are.
    ///
    /// # Errors
    /// What the last one said, if not one can be opened.
    pub(crate) fn open(infos: &[Info], config: &Config, rejected: &mut Vec<Rejected>) -> Result<Self, Error> {
        let mut opened = Vec::with_capacity(infos.len());
        let mut trouble = None;
        for info in infos {
            match Nic::open(info, config.max_peers, config.wait_objects) {
                Ok(nic) => opened.push(nic),
                Err(error) => {
                    let what = format!("NIC {}", nic_name(info));
                    rejected.push(Rejected { what, why: error.to_string() });
                    trouble = Some(error);
                }
            }
        }
        match trouble {
            Some(error) if opened.is_empty() => Err(error),
            _ => Self::of(opened, 0, None, config),
        }
    }

    /// Opens a further fabric on the cards of the first: all of them, because they share the accounts of `ledger`.
    ///
    /// # Errors
    /// What the first NIC said that cannot be opened.
    pub(crate) fn open_further(
        infos: &[Info],
        first_lane: usize,
        ledger: &Ledger,
        config: &Config,
    ) -> Result<Self, Error> {
        let mut opened = Vec::with_capacity(infos.len());
        for info in infos {
            let (mut nic, endpoint) = Nic::open(info, config.max_peers, config.wait_objects)?;
            // The card has another lane already.
            nic.name = format!("{}/{}", nic.name, info.fabric_name());
            opened.push((nic, endpoint));
        }
        Self::of(opened, first_lane, Some(ledger), config)
    }

    fn of(
        opened: Vec<(Nic, Endpoint)>,
        first_lane: usize,
        ledger: Option<&Ledger>,
        config: &Config,
    ) -> Result<Self, Error> {
        let seats = opened.len();
        let lanes: Vec<Lane> = opened
            .into_iter()
            .enumerate()
            .map(|(seat, (nic, endpoint))| {
                Lane::new(first_lane + seat, Seat { seat, of: seats }, nic, endpoint, config)
            })
            .collect();
        let budgets = lanes.iter().map(|lane| {
            let mut budget = nic_of(&lane.nic.domain);
            budget.numa = lane.nic.numa;
            budget.pte_left = config.pte_budget.unwrap_or(budget.pte_left);
            budget.max_mr_bytes = budget.max_mr_bytes.min(config.max_mr_bytes);
            budget
        });
        let domains = lanes.iter().map(|lane| lane.nic.domain.clone()).collect();
        let wrong = |error: efa_mr::Error| Error::setting("nics", error.to_string());
        let mut registrar = Registrar::new(domains, budgets.collect()).map_err(wrong)?;
        if let Some(ledger) = ledger {
            registrar = registrar.with_ledger(ledger.clone()).map_err(wrong)?;
        }
        let device = lanes.iter().map(device).reduce(Device::with).unwrap_or_default();
        Ok(Self {
            name: lanes.first().map_or_else(String::new, |lane| fabric_of(&lane.nic.info).to_owned()),
            device,
            range: first_lane..first_lane + seats,
            fastest: lanes.iter().map(|lane| lane.pace).min().unwrap_or(Pace::of(0)),
            immediate_bytes: lanes.iter().map(|l| l.nic.info.immediate_bytes()).min().unwrap_or(0),
            longest: lanes.iter().map(longest).min().unwrap_or(LONGEST).min(LONGEST),
            lanes,
            registrar: registrar.with_parallel(config.parallel_registrations),
        })
    }

    pub(crate) fn offer(&self) -> Offer<'_> {
        Offer { fabric: &self.name, device: self.device }
    }
}

fn device(lane: &Lane) -> Device {
    let endpoint = Arc::clone(&lane.state.lock().endpoint);
    let emulation = lane.nic.emulation(&endpoint);
    Device { reads: emulation.read.map(|it| !it), writes: emulation.write.map(|it| !it) }
}

fn longest(lane: &Lane) -> u64 {
    let endpoint = Arc::clone(&lane.state.lock().endpoint);
    let rma = endpoint.get(fabric_safe::option::MAX_RMA_BYTES).unwrap_or(usize::MAX);
    // A provider that reports 0 means that it does not know.
    let known = [rma, lane.nic.info.max_message_bytes()].into_iter().filter(|&n| n > 0);
    known.min().map_or(LONGEST, |bytes| bytes as u64)
}
