/* SPDX-License-Identifier: MIT */
/*
 * The devices of test_hmm: two of device-private memory. An open file mirrors
 * the process that opened it. The numbers of its ioctls are those of
 * lib/test_hmm_uapi.h, the same in every version; 6.1 knows no flags.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

struct dmirror_cmd {
	uint64_t addr;			/* of the range, which `npages` are long */
	uint64_t ptr;			/* a buffer of ours */
	uint64_t npages;
	uint64_t cpages;		/* told: pages done */
	uint64_t faults;		/* told: faults of the device */
};

#define REQUEST(number) _IOWR('H', number, struct dmirror_cmd)
enum { READ, WRITE, TO_DEVICE, TO_SYSTEM, SNAPSHOT, EXCLUSIVE, CHECK_EXCLUSIVE, RELEASE, FLAGS };

/* What a device reads into and writes from: a buffer for each thread, outside of the arena. */
#define BUFFERS		0x180000000000UL
#define BUFFER_LENGTH	(MOST_PAGES * PAGE)

static int mirrors[DEVICES] = { -1, -1 };	/* open files */
static _Thread_local unsigned char *buffer;

void devices_start(void)
{
	size_t length = MOST_TOGETHER * BUFFER_LENGTH;
	void *place;
	int i;

	for (i = 0; i < DEVICES; i++) {
		if (mirrors[i] >= 0)
			close(mirrors[i]);
		mirrors[i] = -1;
	}
	place = mmap((void *)BUFFERS, length, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	if (place == MAP_FAILED || madvise(place, length, MADV_DONTFORK))
		_exit(1);
}

/* Pages of the buffer are there before the module copies, so that it faults on the range alone. */
void devices_prepare(int lane, long pages, long value)
{
	long i;

	buffer = (unsigned char *)BUFFERS + lane * BUFFER_LENGTH;
	for (i = 0; i < pages; i++)
		buffer[i * PAGE] = value + i;
}

static void open_device(const long *number, struct answer *answer)
{
	char path[32];
	int file;

	if (mirrors[number[1]] >= 0) {
		answer->result = -EBUSY;
		return;
	}
	snprintf(path, sizeof(path), "/dev/hmm_dmirror%ld", number[1]);
	file = open(path, O_RDWR | O_CLOEXEC);
	answer->result = file < 0 ? -errno : 0;
	mirrors[number[1]] = file;
}

static void close_device(const long *number, struct answer *answer)
{
	answer->result = outcome(close(mirrors[number[1]]));
	mirrors[number[1]] = -1;
}

/* Tells the first byte of every `step` bytes of the buffer, where the range was done. */
static void range(const long *number, int request, struct answer *answer, size_t step)
{
	struct dmirror_cmd cmd = {
		.addr = (uint64_t)address_of(number[2]),
		.ptr = (uint64_t)buffer,
		.npages = number[3],
	};
	long i;

	answer->result = outcome(ioctl(mirrors[number[1]], REQUEST(request), &cmd));
	answer->cpages = answer->result ? 0 : (long)cmd.cpages;
	answer->faults = answer->result ? 0 : (long)cmd.faults;
	if (!step || answer->result)
		return;
	answer->data_length = number[3];
	for (i = 0; i < number[3]; i++)
		answer->data[i] = buffer[i * step];
}

static void device_read(const long *number, struct answer *answer)
{
	range(number, READ, answer, PAGE);
}

static void device_write(const long *number, struct answer *answer)
{
	range(number, WRITE, answer, 0);
}

static void to_device(const long *number, struct answer *answer)
{
	range(number, TO_DEVICE, answer, PAGE);
}

static void to_system(const long *number, struct answer *answer)
{
	range(number, TO_SYSTEM, answer, 0);
}

static void snapshot(const long *number, struct answer *answer)
{
	range(number, SNAPSHOT, answer, 1);
}

static void exclusive(const long *number, struct answer *answer)
{
	range(number, EXCLUSIVE, answer, PAGE);
}

static void check_exclusive(const long *number, struct answer *answer)
{
	range(number, CHECK_EXCLUSIVE, answer, 0);
}

static void release(const long *number, struct answer *answer)
{
	range(number, RELEASE, answer, 0);
}

static void set_flags(const long *number, struct answer *answer)
{
	struct dmirror_cmd cmd = { .addr = ARENA, .npages = number[2] };

	answer->result = outcome(ioctl(mirrors[number[1]], REQUEST(FLAGS), &cmd));
}

const struct verb device_verbs[] = {
	{ "open", "pd", open_device },
	{ "close", "pd", close_device },
	{ "read", "pdam", device_read },
	{ "write", "pdamb", device_write },
	{ "to-device", "pdam", to_device },
	{ "to-system", "pdam", to_system },
	{ "snapshot", "pdam", snapshot },
	{ "exclusive", "pdam", exclusive },
	{ "check-exclusive", "pdam", check_exclusive },
	{ "release", "pdam", release },
	{ "flags", "pdv", set_flags },
	{ NULL, NULL, NULL },
};
