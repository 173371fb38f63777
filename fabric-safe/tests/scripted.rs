//! fabric-safe on a provider that misbehaves on command (`fake-provider`), under every libfabric that is here: every
//! operation ends exactly once, nothing leaks, credits are conserved, memory in flight stays where it is.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fabric_safe::{
    Access, Address, AddressVector, AddressVectorOptions, Capabilities, CompletionBatch, CompletionQueue,
    CompletionQueueOptions, DeregisterError, Direction, Domain, Enabled, Endpoint, Error, ErrorKind, Event,
    EventQueue, Fabric, Hints, LinkState, MemoryMode, MemoryRegion, OperationId, PostError, Remote,
    SendOptions, Usage,
};
use proptest::prelude::*;
use scripted_provider::{Answer, Call, Control, Counts, Faults};

const EAGAIN: i32 = 11;
/// `FI_NOTIFY`, the first kind of event.
const FI_NOTIFY: u32 = 0;
const IS_CHILD: &str = "FABRIC_SAFE_TEST_SCRIPTED";

/// Runs the body once per libfabric, in a process of its own: the test program calls itself, with the provider's folder in
/// `FI_PROVIDER_PATH`.
fn on_every_library(test: &str, body: impl FnOnce(Control)) {
    if std::env::var_os(IS_CHILD).is_some() {
        // What hangs ends: the signal kills the child, and the parent says so. SAFETY: no handler is installed.
        unsafe { libc::alarm(150) };
        let found = Hints::new().provider("scripted").discover().unwrap();
        assert!(!found.is_empty());
        return body(Control::of_loaded_provider().unwrap());
    }
    let folder = provider_folder();
    let all = libraries();
    if all.is_empty() {
        return eprintln!("SKIP: {test}: no libfabric on this machine (Debian: libfabric1)");
    }
    for library in all {
        let mut child = Command::new(std::env::current_exe().unwrap());
        as_child(&mut child, test, &library, folder.path());
        let output = child.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "on {}: {}\n{out}\n{err}", library.display(), output.status);
        assert!(out.contains("1 passed"), "the child ran no test called {test}:\n{out}");
    }
}

/// Makes a command, which runs this program, run one test as a child.
fn as_child(command: &mut Command, test: &str, library: &Path, providers: &Path) {
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env("FABRIC_LIBRARY", library).env_remove("LD_LIBRARY_PATH");
    command.env("FI_PROVIDER_PATH", providers).env("FI_PROVIDER", "scripted").env(IS_CHILD, "1");
    // Shrinking panics often.
    command.env("RUST_BACKTRACE", "0");
}

/// A folder with the provider under the name by which libfabric finds it.
fn provider_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(provider_library(), folder.path().join(Control::FILE)).unwrap();
    folder
}

/// The system's libfabric and the one that `cargo xtask libfabric` makes.
fn libraries() -> Vec<PathBuf> {
    let system = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let system = system.map(|dir| PathBuf::from(dir).join("libfabric.so.1"));
    let executable = std::env::current_exe().unwrap();
    let own = executable.ancestors().map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1"));
    let first = |places: Vec<PathBuf>| places.into_iter().find(|path| path.is_file());
    [first(system.to_vec()), first(own.collect())].into_iter().flatten().collect()
}

/// The provider's library, which cargo builds beside the test programs.
fn provider_library() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let found =
        executable.ancestors().map(|dir| dir.join("libscripted_provider.so")).find(|path| path.is_file());
    found.expect("cargo builds libscripted_provider.so as a dependency of this test")
}

/// An endpoint on the scripted provider, with all that it needs.
struct Stack {
    endpoint: Endpoint<Enabled>,
    queue: CompletionQueue,
    peer: Address,
    region: MemoryRegion<Vec<u8>>,
    // Not used again; here for the order of closing.
    _vector: AddressVector,
    domain: Domain,
}

const REGION_BYTES: usize = 4096;
const TARGET: Remote = Remote { address: 0x1000, key: 77 };

impl Stack {
    fn open() -> Stack {
        Self::try_open().unwrap()
    }

    fn try_open() -> Result<Stack, Error> {
        Self::open_with(Hints::new())
    }

    fn open_with(hints: Hints) -> Result<Stack, Error> {
        let capabilities = Capabilities::MSG | Capabilities::RMA | Capabilities::ATOMIC;
        let info = hints.provider("scripted").capabilities(capabilities).discover()?.remove(0);
        let domain = Domain::open(&Fabric::open(&info)?, &info)?;
        let vector = AddressVector::open(&domain, AddressVectorOptions::default())?;
        let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(&info))?;
        let endpoint = Endpoint::open(&domain, &info)?
            .bind_address_vector(&vector)?
            .bind_completion_queue(&queue, Direction::Both)?
            .enable()?;
        let peer = vector.insert(endpoint.name()?.as_ref())?;
        let region = endpoint.register(vec![7; REGION_BYTES], Access::ALL)?;
        Ok(Stack { endpoint, queue, peer, region, _vector: vector, domain })
    }

    fn write(&self, token: u64) -> Result<OperationId, PostError> {
        self.endpoint.write(&self.peer, self.region.slice(0..64).unwrap(), TARGET, token)
    }

    /// Everything that one reading brings, as (token, error), and whether the queue itself failed.
    fn poll(&self, most: usize) -> (Vec<Ended>, bool) {
        let mut batch = CompletionBatch::new(most);
        let failed = self.queue.poll(&mut batch).is_err();
        let failure = |error: &fabric_safe::OperationError| Failure {
            kind: error.kind(),
            errno: error.errno().raw(),
            provider_errno: error.provider_errno(),
            quiesced: error.quiesced(),
        };
        let all = batch.completions().iter().map(|c| (c.token(), c.result().err().map(failure))).collect();
        (all, failed)
    }
}

/// Token and failure of a completion.
type Ended = (Option<u64>, Option<Failure>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Failure {
    kind: ErrorKind,
    errno: i32,
    provider_errno: i32,
    quiesced: bool,
}

/// Nothing is open any more, and nobody did anything wrong.
fn assert_clean(control: Control) {
    let counts = control.counts();
    assert_eq!((counts.objects, counts.regions, counts.outstanding), (0, 0, 0), "{counts:?}");
    assert_eq!(counts.accepted, counts.completed + counts.forgotten, "{counts:?}");
    assert_eq!(control.faults(), Faults::default());
    assert_eq!(fabric_safe::leaked_objects(), 0);
}

#[test]
fn the_usual_way_is_clean() {
    on_every_library("the_usual_way_is_clean", |control| {
        let stack = Stack::open();
        stack.write(1).unwrap();
        assert_eq!(stack.poll(8), (vec![(Some(1), None)], false));
        drop(stack);
        assert_clean(control);
        assert_eq!(control.counts(), Counts { accepted: 1, completed: 1, ..Counts::default() });
    });
}

#[test]
fn a_storm_of_eagain_is_not_an_error_and_loses_nothing() {
    on_every_library("a_storm_of_eagain_is_not_an_error_and_loses_nothing", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Fail(EAGAIN), 10_000);
        let mut refusals = 0_u64;
        while let Err(error) = stack.write(9) {
            assert!(error.is_again(), "{error}");
            assert_eq!(stack.endpoint.transmit_in_flight(), 0, "a refused post holds a credit");
            refusals += 1;
        }
        assert_eq!(refusals, 10_000);
        control.tell(Call::Read, Answer::Fail(EAGAIN), 1000);
        for _ in 0..1000 {
            assert_eq!(stack.poll(4), (vec![], false));
        }
        assert_eq!(stack.poll(4), (vec![(Some(9), None)], false));
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn the_depth_is_never_exceeded_and_each_end_gives_one_credit_back() {
    on_every_library("the_depth_is_never_exceeded_and_each_end_gives_one_credit_back", |control| {
        let stack = Stack::open();
        let depth = stack.endpoint.transmit_depth();
        control.tell(Call::Post, Answer::Complete { after: 3 }, u32::MAX);
        for round in 0..5_u64 {
            for index in 0..depth as u64 {
                stack.write(round * 100 + index).unwrap();
            }
            assert!(stack.write(0).unwrap_err().is_again());
            assert_eq!(stack.endpoint.transmit_in_flight(), depth);
            let mut ended = Vec::new();
            while ended.len() < depth {
                ended.extend(stack.poll(5).0);
                assert_eq!(stack.endpoint.transmit_in_flight(), depth - ended.len());
            }
            let expected: Vec<_> = (0..depth as u64).map(|index| (Some(round * 100 + index), None)).collect();
            assert_eq!(ended, expected);
        }
        assert_eq!(control.counts().refused, 0, "the provider never had to refuse");
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn an_error_tells_what_the_provider_told() {
    on_every_library("an_error_tells_what_the_provider_told", |control| {
        let stack = Stack::open();
        for (errno, provider_errno) in
            [(22, 7), (103, 4124), (125, 0), (265, 1), (9999, -1), (0, 0), (-5, i32::MIN)]
        {
            control.tell(Call::Post, Answer::Error { errno, provider_errno, after: 1 }, 1);
            stack.write(5).unwrap();
            let end = (0..8).flat_map(|_| stack.poll(1).0).collect::<Vec<_>>();
            let [(Some(5), Some(failure))] = end[..] else { panic!("{errno}: {end:?}") };
            assert_eq!((failure.errno, failure.provider_errno), (errno.abs(), provider_errno));
            let kind = match errno {
                125 => ErrorKind::Cancelled,
                265 => ErrorKind::Truncated,
                _ => ErrorKind::Provider,
            };
            assert_eq!((failure.kind, failure.quiesced), (kind, true));
            assert_eq!(stack.endpoint.transmit_in_flight(), 0);
        }
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn what_never_completes_ends_when_its_endpoint_is_closed() {
    on_every_library("what_never_completes_ends_when_its_endpoint_is_closed", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Never, 3);
        for token in 0..4 {
            stack.write(token).unwrap(); // the last one completes
        }
        stack.endpoint.receive(None, stack.region.slice(64..128).unwrap(), 10).unwrap();
        for _ in 0..100 {
            assert!(stack.poll(1).0.iter().all(|(token, _)| *token == Some(3)));
        }
        stack.endpoint.close().unwrap();
        assert!(matches!(stack.write(5), Err(PostError::Closed)));
        let mut ended: Vec<_> = (0..10).flat_map(|_| stack.poll(2).0).collect();
        ended.sort_by_key(|(token, _)| *token);
        let tokens: Vec<_> = ended.iter().map(|(token, _)| token.unwrap()).collect();
        assert_eq!(tokens, [0, 1, 2, 10]);
        for (_, failure) in ended {
            let failure = failure.unwrap();
            assert_eq!((failure.kind, failure.quiesced), (ErrorKind::Aborted, true));
        }
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn dropping_everything_with_operations_in_flight_is_clean() {
    on_every_library("dropping_everything_with_operations_in_flight_is_clean", |control| {
        for order in 0..6 {
            let stack = Stack::open();
            control.tell(Call::Post, Answer::Never, 2);
            stack.write(1).unwrap();
            stack.write(2).unwrap();
            stack.write(3).unwrap();
            let Stack { endpoint, queue, peer, region, _vector, domain } = stack;
            let mut parts: Vec<Box<dyn std::any::Any>> = vec![
                Box::new(endpoint),
                Box::new(queue),
                Box::new(peer),
                Box::new(region),
                Box::new((_vector, domain)),
            ];
            parts.rotate_left(order % 5);
            if order == 5 {
                parts.reverse();
            }
            parts.into_iter().for_each(drop);
            assert_clean(control);
        }
    });
}

#[test]
fn memory_comes_back_only_when_nothing_uses_it() {
    on_every_library("memory_comes_back_only_when_nothing_uses_it", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Complete { after: 1 }, 1);
        stack.write(1).unwrap();
        let Stack { endpoint, queue, peer, region, _vector, domain } = stack;
        let Err(DeregisterError::InUse(region)) = region.into_memory() else {
            panic!("given back in flight")
        };
        let mut batch = CompletionBatch::new(4);
        while queue.poll(&mut batch).unwrap().is_empty() {}
        assert_eq!(region.into_memory().unwrap(), vec![7; REGION_BYTES]);
        drop((endpoint, queue, peer, _vector, domain));
        assert_clean(control);
    });
}

#[test]
fn a_second_completion_of_the_same_operation_is_counted_and_dropped() {
    on_every_library("a_second_completion_of_the_same_operation_is_counted_and_dropped", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Twice, 1);
        stack.write(1).unwrap();
        let ended: Vec<_> =
            (0..4).flat_map(|_| stack.poll(8).0).filter(|(token, _)| token.is_some()).collect();
        assert_eq!(ended, [(Some(1), None)]);
        assert_eq!(stack.queue.stray_completions(), 1);
        assert_eq!(stack.endpoint.transmit_in_flight(), 0);
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn completions_of_nothing_are_counted_and_end_nothing() {
    on_every_library("completions_of_nothing_are_counted_and_end_nothing", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Never, 1);
        stack.write(1).unwrap();
        for context in [1, 0xdead_beef, u64::MAX, u64::MAX - 7, 64] {
            control.tell(Call::Read, Answer::Stray(context), 1);
            assert!(stack.poll(4).0.iter().all(|(token, _)| token.is_none()), "{context:#x}");
            assert_eq!(stack.endpoint.transmit_in_flight(), 1);
        }
        assert_eq!(stack.queue.stray_completions(), 5);
        drop(stack);
        assert_clean(control);
    });
}

#[test]
fn an_endpoint_that_does_not_close_keeps_its_memory_for_ever() {
    on_every_library("an_endpoint_that_does_not_close_keeps_its_memory_for_ever", |control| {
        let stack = Stack::open();
        control.tell(Call::Post, Answer::Never, 2);
        stack.write(1).unwrap();
        stack.write(2).unwrap();
        control.tell(Call::CloseEndpoint, Answer::Fail(16), u32::MAX);
        assert!(stack.endpoint.close().is_err());
        let ended: Vec<_> = (0..4).flat_map(|_| stack.poll(8).0).collect();
        assert_eq!(ended.len(), 2);
        for (_, failure) in ended {
            let failure = failure.unwrap();
            assert_eq!((failure.kind, failure.quiesced), (ErrorKind::Aborted, false));
        }
        let queue = stack.queue.clone();
        drop(stack);
        // The provider goes on using memory and contexts: under valgrind this would show what has been freed.
        for _ in 0..10 {
            let _ = queue.poll(&mut CompletionBatch::new(4)).unwrap();
        }
        let counts = control.counts();
        assert_eq!((counts.regions, counts.outstanding), (1, 2), "{counts:?}");
        assert_eq!(control.faults(), Faults::default());
        assert!(fabric_safe::leaked_objects() > 0);
    });
}

#[test]
fn a_region_that_does_not_close_is_leaked_and_not_freed() {
    on_every_library("a_region_that_does_not_close_is_leaked_and_not_freed", |control| {
        let stack = Stack::open();
        control.tell(Call::CloseRegion, Answer::Fail(22), 1);
        let Stack { endpoint, queue, peer, region, _vector, domain } = stack;
        assert!(matches!(region.into_memory(), Err(DeregisterError::Leaked(_))));
        assert_eq!(fabric_safe::leaked_objects(), 1);
        // A card may go on using it, and the provider does: under valgrind this would show that it has been freed.
        let _ = queue.poll(&mut CompletionBatch::new(4)).unwrap();
        drop((endpoint, queue, peer, _vector, domain));
        assert_eq!((control.counts().regions, control.faults()), (1, Faults::default()));
    });
}

#[test]
fn setting_up_can_fail_at_every_step_with_any_number() {
    on_every_library("setting_up_can_fail_at_every_step_with_any_number", |control| {
        let calls =
            [(Call::Open, 5), (Call::Bind, 2), (Call::Enable, 1), (Call::Insert, 1), (Call::Register, 1)];
        let before = fabric_safe::leaked_objects();
        for (call, times) in calls {
            for step in 0..times {
                for errno in [12, EAGAIN, 4, 9999, -3, i32::MIN] {
                    control.reset();
                    control.tell(call, Answer::Usual, step);
                    control.tell(call, Answer::Fail(errno), 1);
                    match Stack::try_open() {
                        Err(error) => assert!(!error.to_string().is_empty()),
                        // An address vector is asked for again, smaller.
                        Ok(_) => assert!((call, step) == (Call::Open, 2), "{call:?} {step} {errno}"),
                    }
                    let counts = control.counts();
                    assert_eq!(
                        (counts.objects, counts.regions),
                        (0, 0),
                        "{call:?} {step} {errno}: {counts:?}"
                    );
                }
            }
        }
        control.tell(Call::Insert, Answer::Limit(0), 1);
        assert!(Stack::try_open().is_err());
        assert_eq!(fabric_safe::leaked_objects(), before);
        assert_eq!(control.faults(), Faults::default());
    });
}

/// Hints for the domain whose regions belong to an endpoint.
fn bound() -> Hints {
    let modes = MemoryMode::LOCAL | MemoryMode::VIRT_ADDR | MemoryMode::ALLOCATED | MemoryMode::PROV_KEY;
    Hints::new()
        .domain(scripted_provider::BOUND_DOMAIN.to_str().unwrap())
        .memory_modes(modes | MemoryMode::ENDPOINT)
}

#[test]
fn regions_that_belong_to_an_endpoint_are_bound_enabled_and_closed_before_it() {
    on_every_library(
        "regions_that_belong_to_an_endpoint_are_bound_enabled_and_closed_before_it",
        |control| {
            // Only who says that it can deal with them gets them.
            let name = scripted_provider::BOUND_DOMAIN.to_str().unwrap();
            assert!(Hints::new().provider("scripted").domain(name).discover().unwrap().is_empty());

            let one = Stack::open_with(bound()).unwrap();
            assert!(one.domain.info().endpoint_regions());
            one.write(1).unwrap();
            assert_eq!(one.poll(8), (vec![(Some(1), None)], false));
            // The domain cannot register by itself, and another endpoint cannot use the region.
            let refused = one.domain.register(vec![1; 64], Access::ALL).unwrap_err();
            assert!(matches!(refused.error, Error::Usage(Usage::Binding(_))) && refused.memory == [1; 64]);
            let info = one.domain.info();
            let queue = CompletionQueue::open(&one.domain, CompletionQueueOptions::new(info)).unwrap();
            let other = Endpoint::open(&one.domain, info)
                .and_then(|other| other.bind_address_vector(&one._vector))
                .and_then(|other| other.bind_completion_queue(&queue, Direction::Both))
                .and_then(Endpoint::enable)
                .unwrap();
            let foreign = other.write(&one.peer, one.region.as_slice(), TARGET, 1);
            assert!(
                matches!(foreign, Err(PostError::Failed(error)) if matches!(*error, Error::Usage(Usage::Foreign { .. })))
            );

            // A step that fails gives the memory back and leaves nothing behind.
            for call in [Call::Register, Call::Bind, Call::Enable] {
                control.tell(call, Answer::Fail(12), 1);
                let refused = other.register(vec![3; 64], Access::ALL).unwrap_err();
                assert_eq!(refused.memory, [3; 64]);
            }
            let regions = control.counts().regions;
            drop(other.register(vec![3; 64], Access::ALL).unwrap());
            assert_eq!((regions, control.counts().regions), (1, 1));

            // Closed with an operation in flight: the region goes first, and its memory stays until the operation has ended.
            control.tell(Call::Post, Answer::Never, 1);
            one.write(2).unwrap();
            one.endpoint.close().unwrap();
            assert_eq!(one.endpoint.register(vec![1], Access::ALL).unwrap_err().memory, [1]);
            assert!(one.poll(8).0.iter().all(|(_, failure)| failure.unwrap().kind == ErrorKind::Aborted));
            assert!(one.region.raw_key().is_err(), "closed together with its endpoint");
            let Stack { endpoint, queue: first, peer, region, _vector, domain } = one;
            assert_eq!(region.into_memory().unwrap(), vec![7; REGION_BYTES]);
            drop((endpoint, first, queue, other, peer, _vector, domain));
            assert_clean(control);
        },
    );
}

#[test]
fn an_endpoint_whose_region_does_not_close_leaks_both() {
    on_every_library("an_endpoint_whose_region_does_not_close_leaks_both", |control| {
        let one = Stack::open_with(bound()).unwrap();
        control.tell(Call::Post, Answer::Never, 1);
        one.write(1).unwrap();
        control.tell(Call::CloseRegion, Answer::Fail(16), 1);
        assert!(one.endpoint.close().is_err(), "a region is still bound to it");
        let failure = one.poll(8).0[0].1.unwrap();
        assert_eq!((failure.kind, failure.quiesced), (ErrorKind::Aborted, false));
        let queue = one.queue.clone();
        drop(one);
        // The provider goes on using the memory: under valgrind this would show that it has been freed.
        let _ = queue.poll(&mut CompletionBatch::new(4)).unwrap();
        assert_eq!((control.counts().regions, control.faults()), (1, Faults::default()));
        assert_eq!(fabric_safe::leaked_objects(), 2);
    });
}

#[test]
fn cards_are_found_by_place_and_by_speed() {
    on_every_library("cards_are_found_by_place_and_by_speed", |control| {
        let (place, speed) = (scripted_provider::PCI_ADDRESS, scripted_provider::LINK_BITS_PER_SECOND);
        let found = |hints: Hints| hints.provider("scripted").discover().unwrap();
        let card = found(Hints::new())[0].nic().unwrap();
        assert_eq!(
            (card.name.as_str(), card.link_state, card.mtu_bytes),
            ("scripted-card", LinkState::Up, 9000)
        );
        assert_eq!(card.pci.unwrap().to_string(), place);
        assert_eq!(found(Hints::new().pci(place.parse().unwrap())).len(), 1);
        assert_eq!(found(Hints::new().pci("0000:00:1c.5".parse().unwrap())).len(), 0);
        assert_eq!(found(Hints::new().min_link_speed(speed)).len(), 1);
        assert_eq!(found(Hints::new().min_link_speed(speed + 1)).len(), 0);
        assert_eq!(found(Hints::new().domain("scripted0")).len(), 1);
        assert_eq!(found(Hints::new().domain("scripted1")).len(), 0);
        assert!(found(Hints::new())[0].to_string().contains("at 0001:9b:1c.5, link Up 200 Gbit/s"));
        assert_clean(control);
    });
}

#[test]
fn event_queues_pass_on_events_errors_and_failures() {
    on_every_library("event_queues_pass_on_events_errors_and_failures", |control| {
        let stack = Stack::open();
        let queue = EventQueue::open(stack.domain.fabric()).unwrap();
        assert!(queue.read().unwrap().is_none());
        for data in [1, u64::MAX] {
            queue.write(&Event::new(FI_NOTIFY, data)).unwrap();
        }
        assert_eq!(queue.read().unwrap().unwrap().unwrap(), Event::new(FI_NOTIFY, 1));
        assert_eq!(
            queue.wait(Duration::from_secs(9)).unwrap().unwrap().unwrap(),
            Event::new(FI_NOTIFY, u64::MAX)
        );
        control.tell(Call::Event, Answer::Error { errno: 107, provider_errno: -3, after: 0 }, 1);
        let error = queue.read().unwrap().unwrap().unwrap_err();
        assert_eq!((error.errno.raw(), error.provider_errno, error.data), (107, -3, 7));
        // Interrupted and timed out is nothing; anything else is an error of the call.
        for (errno, nothing) in [(4, true), (110, true), (22, false), (9999, false)] {
            control.tell(Call::Event, Answer::Fail(errno), 1);
            assert_eq!(queue.wait(Duration::ZERO).is_ok_and(|event| event.is_none()), nothing, "{errno}");
        }
        // It outlives what is bound to it, and the other way round.
        let endpoint =
            Endpoint::open(&stack.domain, stack.domain.info()).unwrap().bind_event_queue(&queue).unwrap();
        drop(queue);
        drop((endpoint, stack));
        assert_clean(control);
    });
}

#[test]
fn the_efa_extension_is_asked_by_name_and_answers_about_regions() {
    on_every_library("the_efa_extension_is_asked_by_name_and_answers_about_regions", |control| {
        let (stack, other) = (Stack::open(), Stack::open());
        let efa = stack.domain.efa_ext().unwrap();
        let interconnects = efa.interconnects(stack.region.region()).unwrap();
        let key = stack.region.key() as u16;
        assert_eq!((interconnects.receive, interconnects.read), (Some(key), Some(key + 1)));
        assert_eq!(interconnects.remote_write, None, "what is not valid is not said");
        let foreign = efa.interconnects(other.region.region());
        assert!(matches!(foreign, Err(Error::Usage(Usage::Foreign { .. }))));
        drop((stack, other));
        assert_clean(control);
    });
}

/// A step of a random program.
#[derive(Debug, Clone)]
enum Step {
    Tell(Call, Answer, u32),
    Write(u16),
    Read(u16),
    Send(u16),
    FetchAdd,
    Inject,
    Receive(u16),
    Poll(u8),
    Cancel(u8),
    /// Lets go of the region, whatever uses it, and goes on with another one.
    Renew,
}

fn answers() -> impl Strategy<Value = Step> {
    let errno = prop_oneof![Just(EAGAIN), 1..300_i32, Just(100_000)];
    let end =
        prop_oneof![
            (0..4_u32).prop_map(|after| Answer::Complete { after }),
            (errno.clone(), any::<i32>(), 0..4_u32)
                .prop_map(|(errno, provider_errno, after)| Answer::Error { errno, provider_errno, after }),
            Just(Answer::Never),
            Just(Answer::Usual),
            errno.clone().prop_map(Answer::Fail),
        ];
    let read = prop_oneof![
        errno.clone().prop_map(Answer::Fail),
        (0..3_u32).prop_map(Answer::Limit),
        prop_oneof![Just(1_u64), any::<u64>().prop_map(|c| c | 1)].prop_map(Answer::Stray),
        Just(Answer::Usual),
    ];
    let call = prop_oneof![Just(Call::Post), Just(Call::Receive)];
    prop_oneof![
        4 => (call, end, 1..4_u32).prop_map(|(call, answer, times)| Step::Tell(call, answer, times)),
        2 => (read, 1..4_u32).prop_map(|(answer, times)| Step::Tell(Call::Read, answer, times)),
        1 => (errno.clone(), 1..3_u32).prop_map(|(e, times)| Step::Tell(Call::ReadError, Answer::Fail(e), times)),
        1 => (errno, 1..3_u32).prop_map(|(e, times)| Step::Tell(Call::Inject, Answer::Fail(e), times)),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = 1..REGION_BYTES as u16;
    let step = prop_oneof![
        2 => answers(),
        3 => len.clone().prop_map(Step::Write),
        1 => len.clone().prop_map(Step::Read),
        1 => len.clone().prop_map(Step::Send),
        1 => Just(Step::FetchAdd),
        1 => Just(Step::Inject),
        2 => len.prop_map(Step::Receive),
        5 => any::<u8>().prop_map(Step::Poll),
        1 => any::<u8>().prop_map(Step::Cancel),
        1 => Just(Step::Renew),
    ];
    prop::collection::vec(step, 1..120)
}

/// What the model knows of an operation.
#[derive(Debug, Clone, Copy)]
struct Expected {
    id: OperationId,
    transmit: bool,
    /// The end that the script gives it; `None` if none before the endpoint is closed. Cancelling can change it.
    end: Option<Option<(i32, i32)>>,
    cancelled: bool,
}

/// The script as the provider has it: answers of a call that have not been used.
#[derive(Default)]
struct Script(BTreeMap<u32, VecDeque<(Answer, u32)>>);

impl Script {
    fn tell(&mut self, call: Call, answer: Answer, times: u32) {
        self.0.entry(call as u32).or_default().push_back((answer, times));
    }

    fn next(&mut self, call: Call) -> Answer {
        let Some(queue) = self.0.get_mut(&(call as u32)) else { return Answer::Usual };
        let Some((answer, times)) = queue.front_mut() else { return Answer::Usual };
        let answer = *answer;
        *times -= 1;
        if *times == 0 {
            queue.pop_front();
        }
        answer
    }
}

/// Runs a program beside the model of it.
fn run(control: Control, program: &[Step]) {
    control.reset();
    let mut stack = Stack::open();
    let mut script = Script::default();
    let mut live: BTreeMap<u64, Expected> = BTreeMap::new();
    let (mut posted, mut ended) = (0_u64, 0_u64);
    let depth = [stack.endpoint.receive_depth(), stack.endpoint.transmit_depth()];
    let in_flight = |live: &BTreeMap<u64, Expected>, transmit: bool| {
        live.values().filter(|operation| operation.transmit == transmit).count()
    };
    let finish = |live: &mut BTreeMap<u64, Expected>, token: Option<u64>, failure: Option<Failure>| {
        let Some(token) = token else { return 0 };
        let expected =
            live.remove(&token).unwrap_or_else(|| panic!("token {token} ended twice or never began"));
        match (expected.end, failure) {
            (Some(None), None) => {}
            (_, Some(failure)) if expected.cancelled && failure.kind == ErrorKind::Cancelled => {}
            (Some(Some((errno, provider_errno))), Some(failure)) => {
                assert_eq!((failure.errno, failure.provider_errno), (errno, provider_errno));
            }
            _ => panic!("{token}: {expected:?} ended as {failure:?}"),
        }
        1
    };
    for (token, step) in program.iter().enumerate() {
        let token = token as u64;
        if let Step::Renew = step {
            stack.region = stack.domain.register(vec![7; REGION_BYTES], Access::ALL).unwrap();
            continue;
        }
        let range = |len: &u16| stack.region.slice(0..usize::from(*len)).unwrap();
        let post = match step {
            Step::Tell(call, answer, times) => {
                control.tell(*call, *answer, *times);
                script.tell(*call, *answer, *times);
                None
            }
            Step::Poll(most) => {
                for (token, failure) in stack.poll(usize::from(most % 20)).0 {
                    ended += finish(&mut live, token, failure);
                }
                None
            }
            Step::Cancel(index) => {
                let count = live.len().max(1);
                if let Some(operation) = live.values_mut().nth(usize::from(*index) % count) {
                    stack.endpoint.cancel(operation.id).unwrap();
                    operation.cancelled = true;
                }
                None
            }
            Step::Inject => {
                let sent = stack.endpoint.inject(&stack.peer, &[1; 8], SendOptions::default());
                match script.next(Call::Inject) {
                    Answer::Fail(EAGAIN) => assert!(sent.unwrap_err().is_again()),
                    Answer::Fail(_) => assert!(!sent.unwrap_err().is_again()),
                    _ => sent.unwrap(),
                }
                None
            }
            Step::Write(len) => Some((true, stack.endpoint.write(&stack.peer, range(len), TARGET, token))),
            Step::Read(len) => Some((true, stack.endpoint.read(&stack.peer, range(len), TARGET, token))),
            Step::Send(len) => Some((true, stack.endpoint.send(&stack.peer, range(len), token))),
            Step::FetchAdd => {
                let (operand, result) =
                    (stack.region.slice(0..8).unwrap(), stack.region.slice(8..16).unwrap());
                Some((true, stack.endpoint.fetch_add(&stack.peer, operand, result, TARGET, token)))
            }
            Step::Renew => None,
            Step::Receive(len) => Some((false, stack.endpoint.receive(None, range(len), token))),
        };
        if let Some((transmit, outcome)) = post {
            if in_flight(&live, transmit) == depth[usize::from(transmit)] {
                assert!(outcome.unwrap_err().is_again(), "more than the depth");
            } else {
                let answer = script.next(if transmit { Call::Post } else { Call::Receive });
                let end = match answer {
                    Answer::Fail(errno) => {
                        assert_eq!(outcome.unwrap_err().is_again(), errno == EAGAIN);
                        continue;
                    }
                    Answer::Error { errno, provider_errno, .. } => Some(Some((errno, provider_errno))),
                    Answer::Never => None,
                    Answer::Usual if !transmit => None,
                    _ => Some(None),
                };
                let id = outcome.unwrap();
                live.insert(token, Expected { id, transmit, end, cancelled: false });
                posted += 1;
            }
        }
        assert_eq!(stack.endpoint.transmit_in_flight(), in_flight(&live, true));
        assert_eq!(stack.endpoint.receive_in_flight(), in_flight(&live, false));
        assert_eq!(control.counts().accepted, posted);
    }
    // Whatever the script still says about reading, everything that can end does, and the rest when the endpoint is closed.
    stack.endpoint.close().unwrap();
    let bound =
        16 + script.0.values().flatten().map(|(_, times)| *times as usize).sum::<usize>() + live.len();
    for _ in 0..bound {
        for (token, failure) in stack.poll(7).0 {
            let Some(token) = token else { continue };
            if failure.is_some_and(|failure| failure.kind == ErrorKind::Aborted && failure.quiesced) {
                assert!(live.remove(&token).is_some(), "token {token} ended twice or never began");
                ended += 1;
            } else {
                ended += finish(&mut live, Some(token), failure);
            }
        }
    }
    assert!(live.is_empty(), "never ended: {live:?}");
    assert_eq!(posted, ended);
    drop(stack);
    assert_clean(control);
}

#[test]
fn random_programs_on_random_scripts() {
    on_every_library("random_programs_on_random_scripts", |control| {
        let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
        let config = ProptestConfig {
            cases,
            failure_persistence: None,
            max_shrink_iters: 300,
            ..ProptestConfig::default()
        };
        proptest!(config, |(program in steps())| run(control, &program));
    });
}

/// The tests above once more, in a machine that sees every access to freed memory: the provider touches what is in flight.
#[test]
fn valgrind_finds_no_invalid_access_and_no_lost_memory() {
    let name = "valgrind_finds_no_invalid_access_and_no_lost_memory";
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return eprintln!("SKIP: {name}: valgrind is not installed");
    }
    let folder = provider_folder();
    for library in libraries() {
        for (test, leaks) in [
            ("random_programs_on_random_scripts", "--errors-for-leak-kinds=definite"),
            ("dropping_everything_with_operations_in_flight_is_clean", "--errors-for-leak-kinds=definite"),
            (
                "regions_that_belong_to_an_endpoint_are_bound_enabled_and_closed_before_it",
                "--errors-for-leak-kinds=definite",
            ),
            // These lose memory on purpose.
            ("an_endpoint_whose_region_does_not_close_leaks_both", "--errors-for-leak-kinds=none"),
            ("an_endpoint_that_does_not_close_keeps_its_memory_for_ever", "--errors-for-leak-kinds=none"),
            ("a_region_that_does_not_close_is_leaked_and_not_freed", "--errors-for-leak-kinds=none"),
        ] {
            let mut command = Command::new("valgrind");
            command.args([
                "-q",
                "--error-exitcode=99",
                "--leak-check=full",
                "--show-leak-kinds=definite",
                leaks,
            ]);
            command.arg(std::env::current_exe().unwrap());
            as_child(&mut command, test, &library, folder.path());
            let output = command.env("PROPTEST_CASES", "12").output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{test} on {}: {}\n{text}", library.display(), output.status);
        }
    }
}
