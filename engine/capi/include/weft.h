/* libweft: reads and writes between registered memory on different hosts, over AWS EFA and TCP.
 *
 * Functions return WEFT_OK (0) or a negative number, unless they say otherwise; weft_last_error() is the reason in words.
 * Every function may be called from any thread. Nothing here ends the process.
 *
 * Generated from engine/capi/src by cbindgen; do not edit.
 */

#ifndef WEFT_H
#define WEFT_H

#include <stdint.h>
#include <stddef.h>
#include <stdbool.h>

/*
 The peer's memory is copied to local memory.
 */
#define WEFT_READ 0

/*
 Local memory is copied to the peer's.
 */
#define WEFT_WRITE 1

/*
 Not submitted yet.
 */
#define WEFT_STATE_WAITING 0

/*
 Running.
 */
#define WEFT_STATE_PENDING 1

/*
 There is no such request.
 */
#define WEFT_STATE_INVALID 2

/*
 Was cancelled.
 */
#define WEFT_STATE_CANCELED 3

/*
 Ended well: a write is visible at the peer.
 */
#define WEFT_STATE_COMPLETED 4

/*
 Did not end in time.
 */
#define WEFT_STATE_TIMEOUT 5

/*
 Ended with an error.
 */
#define WEFT_STATE_FAILED 6

/*
 Everything went well.
 */
#define WEFT_OK 0

/*
 An argument makes no sense, or a transfer failed.
 */
#define WEFT_ERROR -1

/*
 Nothing is registered at the address.
 */
#define WEFT_NOT_REGISTERED -3

/*
 Part of the range is registered already.
 */
#define WEFT_OVERLAPPING -7

/*
 A peer's name leads nowhere.
 */
#define WEFT_NAME -101

/*
 A peer cannot be reached.
 */
#define WEFT_UNREACHABLE -102

/*
 Memory cannot be allocated.
 */
#define WEFT_NO_MEMORY -302

/*
 The library itself failed; please report it.
 */
#define WEFT_PANIC -999

/*
 An engine. Made by weft_create, ended by weft_destroy.
 */
typedef struct weft_engine weft_engine;

/*
 One read or write.
 */
typedef struct weft_request {
  /*
   WEFT_READ or WEFT_WRITE.
   */
  int32_t opcode;
  /*
   First local byte. Registered memory is best; other memory is registered for this transfer.
   */
  void *source;
  /*
   The peer, as weft_open_segment gave it.
   */
  uint64_t segment;
  /*
   Absolute address in the peer's process.
   */
  uint64_t target_addr;
  /*
   Bytes.
   */
  uint64_t length;
} weft_request;

/*
 How a request stands.
 */
typedef struct weft_status {
  /*
   One of WEFT_STATE_….
   */
  int32_t state;
  /*
   Its length when it has completed, else 0.
   */
  uint64_t transferred_bytes;
} weft_status;

/*
 A range of memory.
 */
typedef struct weft_buffer {
  /*
   First byte.
   */
  void *addr;
  /*
   Bytes.
   */
  uintptr_t length;
} weft_buffer;

/*
 A notification from a peer.
 */
typedef struct weft_notification {
  /*
   What it is about; the sender's choice.
   */
  char *name;
  /*
   The message.
   */
  char *message;
} weft_notification;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Makes room for `size` requests and stores the batch's id in `*batch_out`.

 # Safety
 `engine` is one; `batch_out` may be written.
 */
int32_t weft_allocate_batch(const struct weft_engine *engine, uintptr_t size, uint64_t *batch_out);

/*
 Starts requests under a batch's id; does not wait for them. They are numbered in the order of submission. None has been started
 if this fails.

 # Safety
 `engine` is one; `requests` are `count`; local memory stays where it is until the requests have ended.
 */
int32_t weft_submit(const struct weft_engine *engine,
                    uint64_t batch,
                    const struct weft_request *requests,
                    uintptr_t count);

/*
 As weft_submit; when all of these requests have ended well, their peers get the notification.

 # Safety
 As weft_submit; `name` and `message` end with a zero byte.
 */
int32_t weft_submit_with_notification(const struct weft_engine *engine,
                                      uint64_t batch,
                                      const struct weft_request *requests,
                                      uintptr_t count,
                                      const char *name,
                                      const char *message);

/*
 How request number `index` of a batch stands; stored in `*status_out`. Of one that failed, weft_last_error() is the reason.

 # Safety
 `engine` is one; `status_out` may be written.
 */
int32_t weft_get_status(const struct weft_engine *engine,
                        uint64_t batch,
                        uintptr_t index,
                        struct weft_status *status_out);

/*
 Blocks until every request of a batch that has been submitted has ended, for `timeout_ms` at most (negative: until their own
 deadlines). 0 if all ended well; 1 if some are still running.

 # Safety
 `engine` is one.
 */
int32_t weft_wait(const struct weft_engine *engine,
                  uint64_t batch,
                  int64_t timeout_ms);

/*
 Forgets a batch. Fails, and changes nothing, while requests of it are running.

 # Safety
 `engine` is one.
 */
int32_t weft_free_batch(const struct weft_engine *engine, uint64_t batch);

/*
 Why the last function of this thread that failed did so, in words. Never null; valid until the next failure on this thread.
 */
const char *weft_last_error(void);

/*
 Registers memory, so that transfers may use it; peers may read and write it if `remote_accessible`. `location` is a label
 such as "cpu:0", or "*".

 # Safety
 `engine` is one; the memory stays mapped and writable until weft_unregister of it has returned 0 or the engine is destroyed.
 */
int32_t weft_register(const struct weft_engine *engine,
                      void *addr,
                      uintptr_t length,
                      const char *location,
                      bool remote_accessible);

/*
 Registers all of these, or none.

 # Safety
 As weft_register, for each; `buffers` are `count`.
 */
int32_t weft_register_batch(const struct weft_engine *engine,
                            const struct weft_buffer *buffers,
                            uintptr_t count,
                            const char *location,
                            bool remote_accessible);

/*
 Takes peers' access away and waits for transfers that use the memory. After 0 nobody but this program touches it.

 # Safety
 `engine` is one.
 */
int32_t weft_unregister(const struct weft_engine *engine,
                        void *addr);

/*
 As weft_unregister for `count` addresses; none if one of them is not registered.

 # Safety
 `engine` is one; `addrs` are `count`.
 */
int32_t weft_unregister_batch(const struct weft_engine *engine,
                              void *const *addrs,
                              uintptr_t count);

/*
 Allocates zeroed, page-aligned memory, registers it for peers, and stores its address in `*addr_out`.

 # Safety
 `engine` is one; `addr_out` may be written.
 */
int32_t weft_allocate(const struct weft_engine *engine,
                      uintptr_t length,
                      void **addr_out);

/*
 Unregisters and frees what weft_allocate gave.

 # Safety
 `engine` is one; nobody uses the memory any more.
 */
int32_t weft_free(const struct weft_engine *engine, void *addr);

/*
 Opens an engine and stores its handle in `*engine_out`.

 `local_hostname` is how peers reach this host. `metadata` is "P2PHANDSHAKE" for none, or a store's URL such as
 "etcd://10.0.0.1:2379". `protocol` is "auto", "efa" or "tcp"; "rdma" is "auto". The variables WEFT_PROTOCOL, MOONCAKE_PROTOCOL and
 MC_FORCE_TCP win over it.

 # Safety
 Strings end with a zero byte; `engine_out` may be written.
 */
int32_t weft_create(const char *local_hostname,
                    const char *metadata,
                    const char *protocol,
                    struct weft_engine **engine_out);

/*
 Ends an engine: running transfers get two seconds, then all memory is let go of. Null does nothing.

 # Safety
 `engine` came from weft_create, is destroyed once, and is in use by nobody.
 */
void weft_destroy(struct weft_engine *engine);

/*
 Copies the name by which peers open this engine ("host:port") to `name`, which has room for `room` bytes, the final zero
 included. Returns the name's length without it, or a negative number if it does not fit.

 # Safety
 `engine` is one; `room` bytes at `name` may be written.
 */
int32_t weft_session_name(const struct weft_engine *engine,
                          char *name,
                          uintptr_t room);

/*
 The port that peers connect to; negative on failure.

 # Safety
 `engine` is one.
 */
int32_t weft_port(const struct weft_engine *engine);

/*
 Puts a notification into the queue of a segment's peer; returns when it is there.

 # Safety
 `engine` is one; strings end with a zero byte.
 */
int32_t weft_notify(const struct weft_engine *engine,
                    uint64_t segment,
                    const char *name,
                    const char *message);

/*
 Takes all notifications that have come, oldest first: an array in `*notifications_out`, its length in `*count_out`. Give it back with
 weft_free_notifications.

 # Safety
 `engine` is one; both places may be written.
 */
int32_t weft_take_notifications(const struct weft_engine *engine,
                                struct weft_notification **notifications_out,
                                uintptr_t *count_out);

/*
 Gives back what weft_take_notifications gave.

 # Safety
 Array and length are as that function stored them, and are given back once.
 */
void weft_free_notifications(struct weft_notification *notifications, uintptr_t count);

/*
 Opens a peer's memory by the peer's name ("host:port") and stores its id in `*segment_out`.

 # Safety
 `engine` is one; `name` ends with a zero byte; `segment_out` may be written.
 */
int32_t weft_open_segment(const struct weft_engine *engine,
                          const char *name,
                          uint64_t *segment_out);

/*
 Lets go of an opened segment. Transfers that were submitted to it run on.

 # Safety
 `engine` is one.
 */
int32_t weft_close_segment(const struct weft_engine *engine, uint64_t segment);

/*
 Fetches what the peers of all opened segments have registered now. The first failure is returned; the others are fetched all the same.

 # Safety
 `engine` is one.
 */
int32_t weft_sync_segments(const struct weft_engine *engine);

/*
 Opens connections and rails to a segment's peer now rather than with the first transfer.

 # Safety
 `engine` is one.
 */
int32_t weft_warm_up(const struct weft_engine *engine, uint64_t segment);

/*
 The address and length of a segment's buffer number `index`, in ascending order of address.

 # Safety
 `engine` is one; `addr_out` and `length_out` may be written.
 */
int32_t weft_segment_buffer(const struct weft_engine *engine,
                            uint64_t segment,
                            uintptr_t index,
                            uint64_t *addr_out,
                            uint64_t *length_out);

/*
 0 if the peer of that name answers.

 # Safety
 `engine` is one; `name` ends with a zero byte.
 */
int32_t weft_probe(const struct weft_engine *engine, const char *name);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* WEFT_H */
