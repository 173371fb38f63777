/* libefa.so.1: each entry point passes its arguments on to the cards, which live in our libibverbs.so.1. */
#include <stdint.h>

int soft_efa_query_device(void *context, void *attr, uint32_t size);
int soft_efa_query_ah(void *ah, void *attr, uint32_t size);
int soft_efa_query_mr(void *mr, void *attr, uint32_t size);
int soft_efa_query_cq(void *cq, void *attr, uint32_t size);
int soft_efa_query_qp_wqs(void *qp, void *send, void *receive, uint32_t size);
void *soft_efa_create_cq(void *context, void *attr, void *efa_attr, uint32_t size);
void *soft_efa_cq_from_ibv_cq_ex(void *cq);
void *soft_efa_create_qp_ex(void *context, void *attr, void *efa_attr, uint32_t size);
void *soft_efa_create_driver_qp(void *pd, void *attr, uint32_t type);

int efadv_query_device(void *context, void *attr, uint32_t size) { return soft_efa_query_device(context, attr, size); }
int efadv_query_ah(void *ah, void *attr, uint32_t size) { return soft_efa_query_ah(ah, attr, size); }
int efadv_query_mr(void *mr, void *attr, uint32_t size) { return soft_efa_query_mr(mr, attr, size); }
int efadv_query_cq(void *cq, void *attr, uint32_t size) { return soft_efa_query_cq(cq, attr, size); }
int efadv_query_qp_wqs(void *qp, void *send, void *receive, uint32_t size)
{
	return soft_efa_query_qp_wqs(qp, send, receive, size);
}
void *efadv_create_cq(void *context, void *attr, void *efa_attr, uint32_t size)
{
	return soft_efa_create_cq(context, attr, efa_attr, size);
}
void *efadv_cq_from_ibv_cq_ex(void *cq) { return soft_efa_cq_from_ibv_cq_ex(cq); }
void *efadv_create_qp_ex(void *context, void *attr, void *efa_attr, uint32_t size)
{
	return soft_efa_create_qp_ex(context, attr, efa_attr, size);
}
void *efadv_create_driver_qp(void *pd, void *attr, uint32_t type) { return soft_efa_create_driver_qp(pd, attr, type); }
