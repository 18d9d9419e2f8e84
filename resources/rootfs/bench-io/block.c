/*
 * block:read|write:SIZE:random|sequential:direct|buffered:DEPTH:COUNT
 *
 * COUNT requests of SIZE bytes to /dev/vda, DEPTH of them at a time: with pread
 * and pwrite for 1, with io_uring for more. Buffered reads find nothing in the
 * cache; buffered writes end with an fsync, which counts.
 */

#define _GNU_SOURCE
#include "io.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DISK "/dev/vda"

struct load {
	int fd;
	int writes;
	int random;
	long size;
	/* Of that size, on the disk. */
	unsigned long places;
	/* The number of the next request, over all of the load's rounds. */
	unsigned long next;
	char *buffers;
};

/* No place comes twice before all others have come once: places is a power of two. */
static off_t place(struct load *load)
{
	unsigned long number = load->next++;

	if (load->random)
		number = number * 2654435761ul + 40503;
	return (off_t)(number & (load->places - 1)) * load->size;
}

static void one_at_a_time(struct load *load, long count)
{
	for (long i = 0; i < count; i++) {
		off_t offset = place(load);
		ssize_t done = load->writes ?
			pwrite(load->fd, load->buffers, load->size, offset) :
			pread(load->fd, load->buffers, load->size, offset);

		if (done != load->size)
			fail("%zd of %ld bytes at %ld", done, load->size, offset);
	}
}

struct ring {
	int fd;
	unsigned int *sq_tail, *sq_mask, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void *map(int fd, size_t size, off_t offset)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_POPULATE, fd, offset);

	if (memory == MAP_FAILED)
		fail("mapping io_uring");
	return memory;
}

static void ring_open(struct ring *ring, unsigned int entries)
{
	struct io_uring_params params = { 0 };
	size_t size;
	char *rings;

	ring->fd = syscall(__NR_io_uring_setup, entries, &params);
	if (ring->fd < 0)
		fail("io_uring_setup");
	size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	rings = map(ring->fd, size, IORING_OFF_SQ_RING);
	ring->sq_tail = (void *)(rings + params.sq_off.tail);
	ring->sq_mask = (void *)(rings + params.sq_off.ring_mask);
	ring->sq_array = (void *)(rings + params.sq_off.array);
	ring->cq_head = (void *)(rings + params.cq_off.head);
	ring->cq_tail = (void *)(rings + params.cq_off.tail);
	ring->cq_mask = (void *)(rings + params.cq_off.ring_mask);
	ring->cqes = (void *)(rings + params.cq_off.cqes);
	ring->sqes = map(ring->fd, params.sq_entries * sizeof(struct io_uring_sqe),
			 IORING_OFF_SQES);
}

/* Queues a request that uses the buffer of this number. */
static void ring_queue(struct ring *ring, struct load *load, unsigned int slot)
{
	unsigned int tail = *ring->sq_tail, index = tail & *ring->sq_mask;
	struct io_uring_sqe *sqe = &ring->sqes[index];

	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = load->writes ? IORING_OP_WRITE : IORING_OP_READ;
	sqe->fd = load->fd;
	sqe->addr = (unsigned long)(load->buffers + slot * load->size);
	sqe->len = load->size;
	sqe->off = place(load);
	sqe->user_data = slot;
	ring->sq_array[index] = index;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
}

static void many_at_a_time(struct load *load, struct ring *ring, long count, long depth)
{
	long queued = 0, done = 0;
	unsigned int fresh = 0;

	for (; queued < count && queued < depth; queued++, fresh++)
		ring_queue(ring, load, queued);
	while (done < count) {
		unsigned int head, tail;

		if (syscall(__NR_io_uring_enter, ring->fd, fresh, 1,
			    IORING_ENTER_GETEVENTS, NULL, 0) != fresh)
			fail("io_uring_enter");
		fresh = 0;
		tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
		for (head = *ring->cq_head; head != tail; head++, done++) {
			struct io_uring_cqe *cqe = &ring->cqes[head & *ring->cq_mask];

			if (cqe->res != load->size)
				fail("io_uring: %d of %ld bytes", cqe->res, load->size);
			if (queued < count) {
				ring_queue(ring, load, cqe->user_data);
				queued++;
				fresh++;
			}
		}
		__atomic_store_n(ring->cq_head, head, __ATOMIC_RELEASE);
	}
}

static void some(struct load *load, struct ring *ring, long count, long depth)
{
	if (depth == 1)
		one_at_a_time(load, count);
	else
		many_at_a_time(load, ring, count, depth);
	if (load->writes && fsync(load->fd))
		fail("fsync");
}

void block(const struct job *job, struct result *result)
{
	int direct = !strcmp(word(job, 4), "direct");
	long depth = number(job, 5), count = number(job, 6);
	struct load load = {
		.writes = !strcmp(word(job, 1), "write"),
		.size = number(job, 2),
		.random = !strcmp(word(job, 3), "random"),
	};
	struct ring ring = { .fd = -1 };
	unsigned long long bytes;

	load.fd = open(DISK, O_RDWR | (direct ? O_DIRECT : 0));
	if (load.fd < 0 || ioctl(load.fd, BLKGETSIZE64, &bytes))
		fail(DISK);
	load.places = bytes / load.size;
	load.buffers = buffer(load.size * depth);
	if (depth > 1)
		ring_open(&ring, depth);

	/* A quarter more at first, to warm what can be warmed. */
	some(&load, &ring, (count + 3) / 4, depth);
	if (ioctl(load.fd, BLKFLSBUF))
		fail("BLKFLSBUF");
	if (load.random && posix_fadvise(load.fd, 0, 0, POSIX_FADV_RANDOM))
		fail("posix_fadvise");
	begin();
	some(&load, &ring, count, depth);
	end(result, count, (long long)count * load.size);

	munmap(load.buffers, load.size * depth);
	close(load.fd);
	if (ring.fd >= 0)
		close(ring.fd);
}
