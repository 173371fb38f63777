//! What to register where: PTE budgets, chunk-to-NIC assignment, MR cache, topology, CUDA pointers
