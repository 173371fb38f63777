/* Uses every function of weft.h, as two processes:
 *
 *   program serve PROTOCOL      prints its name, serves until its standard input ends, then says what it was sent
 *   program drive PROTOCOL NAME reads and writes the other one
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <stddef.h>
#include <stdbool.h>

#include "weft.h"

#define LENGTH (1 << 20)

static void fail(const char *what, int line) {
    fprintf(stderr, "line %d: %s: %s\n", line, what, weft_last_error());
    exit(1);
}

#define MUST(call) do { if ((call) != WEFT_OK) fail(#call, __LINE__); } while (0)
#define CHECK(condition) do { if (!(condition)) fail(#condition, __LINE__); } while (0)
/* A call that must fail with this code, and with these words. */
#define REFUSED(code, words, call) do { \
        CHECK((call) == (code)); \
        CHECK(strstr(weft_last_error(), (words)) != NULL); \
    } while (0)

static unsigned char pattern(size_t i) {
    return (unsigned char)(i * 31 + (i >> 8) * 17 + 7);
}

static void serve(weft_engine *engine) {
    unsigned char *pool = calloc(1, LENGTH);
    CHECK(pool != NULL);
    MUST(weft_register(engine, pool, LENGTH, "cpu:0", true));
    char name[256];
    CHECK(weft_session_name(engine, name, sizeof name) == (int)strlen(name));
    printf("%s\n", name);
    fflush(stdout);
    char line[64];
    CHECK(fgets(line, sizeof line, stdin) != NULL);

    /* Written by the other process: a pattern between untouched bytes. */
    CHECK(pool[99] == 0 && pool[100 + LENGTH / 2] == 0);
    for (size_t i = 0; i < LENGTH / 2; i++) CHECK(pool[100 + i] == pattern(i));
    weft_notification *notes = NULL;
    size_t count = 0;
    MUST(weft_take_notifications(engine, &notes, &count));
    CHECK(count == 2);
    CHECK(strcmp(notes[0].name, "kv") == 0 && strcmp(notes[0].message, "half a pool") == 0);
    CHECK(strcmp(notes[1].name, "alone") == 0 && strcmp(notes[1].message, "") == 0);
    weft_free_notifications(notes, count);
    MUST(weft_unregister(engine, pool));
    free(pool);
    printf("verified\n");
}

static int32_t await(weft_engine *engine, uint64_t batch, size_t index, weft_status *status) {
    do {
        MUST(weft_get_status(engine, batch, index, status));
    } while (status->state == WEFT_STATE_PENDING);
    return status->state;
}

static void drive(weft_engine *engine, const char *name) {
    uint64_t segment, batch, addr, length;
    MUST(weft_probe(engine, name));
    MUST(weft_open_segment(engine, name, &segment));
    MUST(weft_warm_up(engine, segment));
    MUST(weft_sync_segments(engine));
    MUST(weft_segment_buffer(engine, segment, 0, &addr, &length));
    CHECK(length == LENGTH);

    unsigned char *here = malloc(LENGTH);
    CHECK(here != NULL);
    for (size_t i = 0; i < LENGTH; i++) here[i] = pattern(i);
    weft_buffer buffers[2] = {{here, LENGTH / 2}, {here + LENGTH / 2, LENGTH / 2}};
    MUST(weft_register_batch(engine, buffers, 2, "*", false));

    /* Half a pool in 64 writes, then a notification. */
    enum { COUNT = 64 };
    weft_request requests[COUNT];
    const size_t piece = LENGTH / 2 / COUNT;
    for (size_t i = 0; i < COUNT; i++) {
        requests[i] = (weft_request){WEFT_WRITE, here + i * piece, segment, addr + 100 + i * piece, piece};
    }
    weft_status status;
    MUST(weft_allocate_batch(engine, COUNT, &batch));
    MUST(weft_get_status(engine, batch, 0, &status));
    CHECK(status.state == WEFT_STATE_WAITING);
    MUST(weft_submit(engine, batch, requests, COUNT / 2));
    MUST(weft_submit_with_notification(engine, batch, requests + COUNT / 2, COUNT / 2, "kv", "half a pool"));
    REFUSED(WEFT_ERROR, "free", weft_submit(engine, batch, requests, 1));
    for (size_t i = 0; i < COUNT; i++) {
        CHECK(await(engine, batch, i, &status) == WEFT_STATE_COMPLETED && status.transferred_bytes == piece);
    }
    MUST(weft_get_status(engine, batch, COUNT, &status));
    CHECK(status.state == WEFT_STATE_INVALID);
    MUST(weft_wait(engine, batch, -1));
    MUST(weft_free_batch(engine, batch));
    REFUSED(WEFT_ERROR, "there is no batch", weft_free_batch(engine, batch));
    MUST(weft_notify(engine, segment, "alone", ""));

    /* And back, into memory of the library's. */
    void *read = NULL;
    MUST(weft_allocate(engine, LENGTH / 2, &read));
    weft_request back = {WEFT_READ, read, segment, addr + 100, LENGTH / 2};
    MUST(weft_allocate_batch(engine, 1, &batch));
    MUST(weft_submit(engine, batch, &back, 1));
    MUST(weft_wait(engine, batch, 60000));
    MUST(weft_free_batch(engine, batch));
    CHECK(memcmp(read, here, LENGTH / 2) == 0);
    MUST(weft_free(engine, read));

    /* What is wrong is an error with words, and nothing else. */
    weft_request outside = {WEFT_WRITE, here, segment, addr + LENGTH - 8, 16};
    weft_request nonsense = {7, here, segment, addr, 16};
    weft_request nowhere = {WEFT_WRITE, here, segment + 100, addr, 16};
    MUST(weft_allocate_batch(engine, 4, &batch));
    REFUSED(WEFT_ERROR, "no registered buffer", weft_submit(engine, batch, &outside, 1));
    REFUSED(WEFT_ERROR, "opcode 7", weft_submit(engine, batch, &nonsense, 1));
    REFUSED(WEFT_ERROR, "there is no segment", weft_submit(engine, batch, &nowhere, 1));
    REFUSED(WEFT_ERROR, "null", weft_submit(engine, batch, NULL, 1));
    REFUSED(WEFT_ERROR, "there is no batch", weft_submit(engine, batch + 100, &back, 1));
    MUST(weft_submit(engine, batch, NULL, 0));
    MUST(weft_wait(engine, batch, 0));
    MUST(weft_free_batch(engine, batch));
    REFUSED(WEFT_OVERLAPPING, "overlaps", weft_register(engine, here, 16, "*", true));
    REFUSED(WEFT_NOT_REGISTERED, "nothing is registered", weft_unregister(engine, here + 1));
    REFUSED(WEFT_NOT_REGISTERED, "nothing is registered", weft_free(engine, here));
    REFUSED(WEFT_ERROR, "no range", weft_register(engine, NULL, 16, "*", true));
    REFUSED(WEFT_NO_MEMORY, "mapping", weft_allocate(engine, (size_t)1 << 46, &read));
    REFUSED(WEFT_NAME, "nowhere", weft_probe(engine, "nowhere"));
    REFUSED(WEFT_UNREACHABLE, "127.0.0.1:9", weft_open_segment(engine, "127.0.0.1:9", &segment));
    REFUSED(WEFT_ERROR, "engine is null", weft_port(NULL));
    REFUSED(WEFT_ERROR, "name is null", weft_probe(engine, NULL));
    REFUSED(WEFT_ERROR, "UTF-8", weft_probe(engine, "\xff"));
    char small[4];
    REFUSED(WEFT_ERROR, "room", weft_session_name(engine, small, sizeof small));
    weft_engine *none = engine;
    REFUSED(WEFT_ERROR, "pigeon", weft_create("127.0.0.1", "P2PHANDSHAKE", "pigeon", &none));
    CHECK(none == NULL);

    void *addrs[2] = {here, here + LENGTH / 2};
    MUST(weft_unregister_batch(engine, addrs, 2));
    MUST(weft_close_segment(engine, 1));
    REFUSED(WEFT_ERROR, "there is no segment", weft_close_segment(engine, 1));
    free(here);
    printf("done\n");
}

int main(int argc, char **argv) {
    weft_engine *engine = NULL;
    CHECK(argc >= 3);
    MUST(weft_create("127.0.0.1", "P2PHANDSHAKE", argv[2], &engine));
    CHECK(weft_port(engine) > 0);
    if (strcmp(argv[1], "serve") == 0) serve(engine);
    else { CHECK(argc == 4); drive(engine, argv[3]); }
    weft_destroy(engine);
    weft_destroy(NULL);
    return 0;
}
