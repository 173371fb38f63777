//! The C structures are laid out as rdma-core has them.
//!
//! The numbers here were printed by a C program over the headers of rdma-core 59; where `cc` and the headers of some rdma-core are
//! installed, the same program is compiled again and must agree for everything that its version has.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use soft_efa::abi::*;
use std::mem::offset_of;
use std::process::Command;

/// Name, ours, rdma-core 59's (x86-64 and aarch64 alike).
fn numbers() -> Vec<(&'static str, usize, usize)> {
    let from_end = |offset: usize| offset_of!(verbs_context, context) - offset;
    vec![
        ("sizeof(struct ibv_device)", size_of::<ibv_device>(), 664),
        ("offsetof(struct ibv_device, ibdev_path)", offset_of!(ibv_device, ibdev_path), 408),
        ("sizeof(struct ibv_device_attr)", size_of::<ibv_device_attr>(), 232),
        (
            "offsetof(struct ibv_device_attr, vendor_part_id)",
            offset_of!(ibv_device_attr, vendor_part_id),
            100,
        ),
        ("offsetof(struct ibv_device_attr, max_ah)", offset_of!(ibv_device_attr, max_ah), 200),
        ("offsetof(struct ibv_device_attr, phys_port_cnt)", offset_of!(ibv_device_attr, phys_port_cnt), 227),
        ("offsetof(struct ibv_port_attr, port_cap_flags2)", offset_of!(ibv_port_attr, port_cap_flags2), 48),
        ("sizeof(struct ibv_gid_entry)", size_of::<ibv_gid_entry>(), 32),
        ("sizeof(struct ibv_async_event)", size_of::<ibv_async_event>(), 16),
        ("sizeof(struct ibv_wc)", size_of::<ibv_wc>(), 48),
        ("sizeof(struct ibv_pd)", size_of::<ibv_pd>(), 16),
        ("sizeof(struct ibv_mr)", size_of::<ibv_mr>(), 48),
        ("sizeof(struct ibv_ah_attr)", size_of::<ibv_ah_attr>(), 32),
        ("sizeof(struct ibv_ah)", size_of::<ibv_ah>(), 24),
        ("sizeof(struct ibv_qp_init_attr)", size_of::<ibv_qp_init_attr>(), 64),
        ("sizeof(struct ibv_qp_init_attr_ex)", size_of::<ibv_qp_init_attr_ex>(), 136),
        ("offsetof(struct ibv_qp_init_attr_ex, pd)", offset_of!(ibv_qp_init_attr_ex, pd), 64),
        (
            "offsetof(struct ibv_qp_init_attr_ex, send_ops_flags)",
            offset_of!(ibv_qp_init_attr_ex, send_ops_flags),
            128,
        ),
        ("sizeof(struct ibv_qp_attr)", size_of::<ibv_qp_attr>(), 144),
        ("offsetof(struct ibv_qp_attr, rnr_retry)", offset_of!(ibv_qp_attr, rnr_retry), 132),
        ("sizeof(struct ibv_sge)", size_of::<ibv_sge>(), 16),
        ("sizeof(struct ibv_send_wr)", size_of::<ibv_send_wr>(), 128),
        ("offsetof(struct ibv_send_wr, wr)", offset_of!(ibv_send_wr, ud), 40),
        ("sizeof(struct ibv_recv_wr)", size_of::<ibv_recv_wr>(), 32),
        ("sizeof(struct ibv_qp)", size_of::<ibv_qp>(), 160),
        ("offsetof(struct ibv_qp_ex, wr_id)", offset_of!(ibv_qp_ex, wr_id), 168),
        ("offsetof(struct ibv_qp_ex, wr_rdma_read)", offset_of!(ibv_qp_ex, wr_rdma_read), 216),
        ("offsetof(struct ibv_qp_ex, wr_set_ud_addr)", offset_of!(ibv_qp_ex, wr_set_ud_addr), 272),
        ("offsetof(struct ibv_qp_ex, wr_start)", offset_of!(ibv_qp_ex, wr_start), 320),
        ("offsetof(struct ibv_qp_ex, wr_abort)", offset_of!(ibv_qp_ex, wr_abort), 336),
        ("sizeof(struct ibv_comp_channel)", size_of::<ibv_comp_channel>(), 16),
        ("sizeof(struct ibv_cq)", size_of::<ibv_cq>(), 128),
        ("sizeof(struct ibv_cq_ex)", size_of::<ibv_cq_ex>(), 288),
        ("offsetof(struct ibv_cq_ex, status)", offset_of!(ibv_cq_ex, status), 132),
        ("offsetof(struct ibv_cq_ex, start_poll)", offset_of!(ibv_cq_ex, start_poll), 144),
        ("offsetof(struct ibv_cq_ex, read_slid)", offset_of!(ibv_cq_ex, read_slid), 224),
        ("sizeof(struct ibv_cq_init_attr_ex)", size_of::<ibv_cq_init_attr_ex>(), 56),
        ("sizeof(struct ibv_context)", size_of::<ibv_context>(), 328),
        ("offsetof(struct ibv_context, ops.poll_cq)", offset_of!(ibv_context, ops.poll_cq), 96),
        ("offsetof(struct ibv_context, ops.post_recv)", offset_of!(ibv_context, ops.post_recv), 216),
        ("offsetof(struct ibv_context, num_comp_vectors)", offset_of!(ibv_context, num_comp_vectors), 272),
        ("FROM_END(query_port)", from_end(offset_of!(verbs_context, query_port)), 320),
        ("FROM_END(create_cq_ex)", from_end(offset_of!(verbs_context, create_cq_ex)), 120),
        ("FROM_END(query_device_ex)", from_end(offset_of!(verbs_context, query_device_ex)), 104),
        ("FROM_END(create_qp_ex)", from_end(offset_of!(verbs_context, create_qp_ex)), 56),
        ("FROM_END(sz)", from_end(offset_of!(verbs_context, sz)), 8),
        ("sizeof(struct efadv_ah_attr)", size_of::<efadv_ah_attr>(), 16),
        ("offsetof(struct efadv_device_attr, device_caps)", offset_of!(efadv_device_attr, device_caps), 24),
        ("offsetof(struct efadv_cq, wc_read_sgid)", offset_of!(efadv_cq, wc_read_sgid), 8),
        ("offsetof(struct efadv_cq_init_attr, wc_flags)", offset_of!(efadv_cq_init_attr, wc_flags), 8),
    ]
}

#[test]
fn ours_are_the_numbers_of_rdma_core() {
    for (what, ours, theirs) in numbers() {
        assert_eq!(ours, theirs, "{what}");
    }
}

#[test]
fn the_installed_headers_agree() {
    let dir = tempfile::tempdir().unwrap();
    let headers = "#include <stddef.h>\n#include <stdio.h>\n#include <infiniband/verbs.h>\n#include <infiniband/efadv.h>\n\
                   #define FROM_END(field) (offsetof(struct verbs_context, context) - offsetof(struct verbs_context, field))\n";
    let lines: String =
        numbers().iter().map(|(what, ..)| format!("printf(\"%zu\\n\", (size_t)({what}));\n")).collect();
    let source = dir.path().join("layout.c");
    let program = dir.path().join("layout");
    std::fs::write(&source, format!("{headers}int main(void) {{\n{lines}return 0;\n}}\n")).unwrap();
    let built = Command::new("cc").arg(&source).arg("-o").arg(&program).output();
    if !built.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIP: the_installed_headers_agree: no C compiler or no headers (Debian: libibverbs-dev)");
        return;
    }
    let said = Command::new(&program).output().unwrap().stdout;
    let theirs: Vec<usize> =
        String::from_utf8(said).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    let wrong: Vec<_> =
        numbers().into_iter().zip(theirs).filter(|((_, ours, _), theirs)| ours != theirs).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
