//! Properties of the vocabulary: words of bits, versions, errno texts, sizes that the C interface fixes.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use bitflags::Flags;
use fabric_sys::*;
use proptest::prelude::*;

/// Any word survives: what has a name, what has none, through text and back.
fn round_trip<F>(bits: F::Bits)
where
    F: Flags + Copy + PartialEq + std::fmt::Debug,
    F::Bits: PartialEq + std::fmt::Debug + bitflags::parser::ParseHex + bitflags::parser::WriteHex,
{
    let flags = F::from_bits_retain(bits);
    assert_eq!(flags.bits(), bits);
    let mut text = String::new();
    bitflags::parser::to_writer(&flags, &mut text).unwrap();
    assert_eq!(bitflags::parser::from_str::<F>(&text).unwrap(), flags, "{text}");
    assert_eq!(
        F::from_bits(bits).map(|f| f.bits()),
        Some(bits),
        "bits without a name are known to nobody but kept"
    );
}

proptest! {
    #[test]
    fn words_of_bits_survive_the_way_through_types_and_text(bits in any::<u64>(), mode in 0..=i32::MAX) {
        round_trip::<Caps>(bits);
        round_trip::<Mode>(bits);
        round_trip::<OpFlags>(bits);
        round_trip::<Access>(bits);
        round_trip::<CqFlags>(bits);
        round_trip::<RegFlags>(bits);
        round_trip::<MrMode>(mode);
    }

    #[test]
    fn every_errno_has_a_text_whatever_its_sign(errno in prop_oneof![any::<i32>(), -300..300]) {
        prop_assert!(!errno_text(errno).is_empty());
        if let Some(positive) = errno.checked_abs() {
            prop_assert_eq!(errno_name(positive), errno_name(-positive));
            if errno_name(errno).is_some() {
                prop_assert_eq!(errno_text(positive), errno_text(-positive));
            }
        }
    }

    #[test]
    fn versions_are_ordered_as_their_numbers(a in any::<(u16, u16)>(), b in any::<(u16, u16)>()) {
        let (one, other) = (Version::new(a.0, a.1), Version::new(b.0, b.1));
        prop_assert_eq!(one.cmp(&other), a.cmp(&b));
        prop_assert_eq!((one.major(), one.minor()), (a.0.into(), a.1.into()));
        prop_assert_eq!(Version::from_raw(one.raw()), one);
        prop_assert_eq!(one.to_string(), format!("{}.{}", a.0, a.1));
    }

    #[test]
    fn addresses_of_receive_contexts_and_groups_keep_their_parts(
        address in 0..1_u64 << 32, context_bits in 0..16_u32, index in any::<u32>(), group in any::<u32>()
    ) {
        let index = if context_bits == 0 { 0 } else { index >> (32 - context_bits) };
        let full = fi_rx_addr(address, index, context_bits);
        prop_assert_eq!(full & u64::from(u32::MAX), address);
        prop_assert_eq!(if context_bits == 0 { 0 } else { full >> (64 - context_bits) }, u64::from(index));
        prop_assert_eq!(fi_group_addr(address, group) >> 32, u64::from(group));
    }

    #[test]
    fn mpi_tags_keep_their_parts(tag in any::<i32>(), payload in any::<u8>()) {
        let both = fi_tag_mpi(tag, payload);
        prop_assert_eq!(both as u32, tag.cast_unsigned());
        prop_assert_eq!(both >> 32, u64::from(payload));
    }
}

/// Each name is one bit, and no two names of a type are the same bit: a wrong constant behind a name shows.
fn names_are_single_bits<F: Flags>(as_u64: impl Fn(F::Bits) -> u64) {
    let mut seen = 0_u64;
    for flag in F::FLAGS.iter().filter(|flag| !flag.name().is_empty()) {
        let bits = as_u64(flag.value().bits());
        assert_eq!(bits.count_ones(), 1, "{}", flag.name());
        assert_eq!(seen & bits, 0, "{} is the bit of another name", flag.name());
        seen |= bits;
    }
    assert!(seen != 0);
}

#[test]
fn every_name_of_a_word_is_a_bit_of_its_own() {
    names_are_single_bits::<Caps>(|bits| bits);
    names_are_single_bits::<Mode>(|bits| bits);
    names_are_single_bits::<OpFlags>(|bits| bits);
    names_are_single_bits::<Access>(|bits| bits);
    names_are_single_bits::<CqFlags>(|bits| bits);
    names_are_single_bits::<RegFlags>(|bits| bits);
    names_are_single_bits::<MrMode>(|bits| u64::from(bits.cast_unsigned()));
}

/// Figures from the manual pages: fi_cq(3), fi_getinfo(3) (FI_CONTEXT, FI_CONTEXT2), fi_errno(3).
#[test]
fn sizes_and_numbers_that_the_c_interface_fixes() {
    let pointer = size_of::<usize>();
    assert_eq!((size_of::<fi_context>(), size_of::<fi_context2>()), (4 * pointer, 8 * pointer));
    assert_eq!(size_of::<fi_cq_entry>(), 8);
    assert_eq!(size_of::<fi_cq_msg_entry>(), 24);
    assert_eq!(size_of::<fi_cq_data_entry>(), 40);
    assert_eq!(size_of::<fi_cq_tagged_entry>(), 48);
    assert_eq!(size_of::<fi_provider>(), 72);
    // Options are read and written by size; these are the C types behind them.
    assert_eq!((size_of::<bool>(), size_of_val(&FI_HMEM_P2P_DISABLED)), (1, 4));
    assert_eq!((FI_EAGAIN, FI_ENOSYS, FI_EOTHER, FI_ETOOSMALL, FI_EAVAIL), (11, 38, 256, 257, 259));
    assert_eq!(FI_OPT_EFA_RNR_RETRY, -(0xefa << 16));
    assert_eq!(FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, FI_OPT_EFA_RNR_RETRY + 8);
    assert_eq!((FI_VERSION(1, 17), FI_ADDR_UNSPEC), (0x1_0011, u64::MAX));
}

/// Every errno of the bindings has a name and a text of its own.
#[test]
fn errno_names_are_complete() {
    for errno in (FI_EOTHER..FI_ERRNO_MAX).chain([FI_EPERM, FI_EAGAIN, FI_ECANCELED, FI_EKEYREJECTED]) {
        let name = errno_name(errno).unwrap_or_else(|| panic!("{errno} has no name"));
        assert!(name.starts_with("FI_E"), "{name}");
    }
    assert_eq!(errno_name(-FI_EAGAIN), Some("FI_EAGAIN"));
    assert_eq!(errno_name(i32::MIN), None);
    assert_eq!(errno_text(i32::MIN), "unknown error -2147483648");
}
