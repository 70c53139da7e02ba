/* SPDX-License-Identifier: MIT */
/*
 * What a process does: one function for each verb. Arguments come in the order
 * of the line, checked; a result is what the system call gave, or minus errno.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

static struct pin {
	long page;			/* or -1 */
	int pipe[2];
} pins[16];

static bool started;

static _Thread_local sigjmp_buf escape;
static _Thread_local volatile bool may_escape;
static _Thread_local volatile int escaped_code;

void *address_of(long page)
{
	return (void *)(ARENA + page * PAGE);
}

long outcome(long result)
{
	return result < 0 ? -errno : result;
}

/* ---- loads and stores, whose signals are answers ---- */

static void on_fault(int signal, siginfo_t *info, void *context)
{
	(void)context;
	if (!may_escape) {
		struct sigaction plain = { .sa_handler = SIG_DFL };

		sigaction(signal, &plain, NULL);
		return;		/* it faults again, and the process ends */
	}
	escaped_code = info->si_code;
	siglongjmp(escape, signal);
}

static void touch(volatile unsigned char *byte, const long *value, struct answer *answer)
{
	int signal = sigsetjmp(escape, 0);

	if (signal) {
		answer->signal = signal;
		answer->code = escaped_code;
	} else {
		may_escape = true;
		if (value)
			*byte = *value;
		answer->value = value ? *value : *byte;
	}
	may_escape = false;
}

static void load(const long *number, struct answer *answer)
{
	touch(address_of(number[1]), NULL, answer);
}

static void store(const long *number, struct answer *answer)
{
	touch(address_of(number[1]), &number[2], answer);
}

/* ---- the address space ---- */

static const int protections[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };

enum kind { PRIVATE, SHARED, ON_FILE, PRIVATE_ON_FILE, HUGE };

static void map(const long *number, struct answer *answer)
{
	static const int kinds[] = {
		[PRIVATE] = MAP_PRIVATE | MAP_ANONYMOUS,
		[SHARED] = MAP_SHARED | MAP_ANONYMOUS,
		[ON_FILE] = MAP_SHARED,
		[PRIVATE_ON_FILE] = MAP_PRIVATE,
		[HUGE] = MAP_PRIVATE | MAP_ANONYMOUS,
	};
	void *place = address_of(number[1]), *got;
	size_t length = number[2] * PAGE;
	int flags = kinds[number[4]] | MAP_FIXED | MAP_NORESERVE, file = -1;
	off_t offset = 0;

	if (!(flags & MAP_ANONYMOUS)) {
		file = arena_file;
		offset = number[1] * PAGE;
	}
	got = mmap(place, length, protections[number[3]], flags, file, offset);
	answer->result = got == MAP_FAILED ? -errno : 0;
	if (got != MAP_FAILED && number[4] == HUGE)
		answer->result = outcome(madvise(place, length, MADV_HUGEPAGE));
}

static void unmap(const long *number, struct answer *answer)
{
	answer->result = outcome(munmap(address_of(number[1]), number[2] * PAGE));
}

static void protect(const long *number, struct answer *answer)
{
	answer->result = outcome(mprotect(address_of(number[1]), number[2] * PAGE, protections[number[3]]));
}

static void advise(const long *number, struct answer *answer)
{
	static const int advices[] = {
		MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
		MADV_COLLAPSE, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_DONTFORK,
	};

	answer->result = outcome(madvise(address_of(number[1]), number[2] * PAGE, advices[number[3]]));
}

static void remap(const long *number, struct answer *answer)
{
	size_t length = number[2] * PAGE;
	void *to = mremap(address_of(number[1]), length, length, MREMAP_MAYMOVE | MREMAP_FIXED, address_of(number[3]));

	answer->result = to == MAP_FAILED ? -errno : 0;
}

/* ---- pins: a pipe that holds a page has a reference to it ---- */

static struct pin *pin_of(long page)
{
	size_t i;

	for (i = 0; i < sizeof(pins) / sizeof(pins[0]); i++)
		if (pins[i].page == page)
			return &pins[i];
	return NULL;
}

static void unplug(struct pin *pin)
{
	close(pin->pipe[0]);
	close(pin->pipe[1]);
	pin->page = -1;
}

static void pin(const long *number, struct answer *answer)
{
	struct iovec byte = { address_of(number[1]), 1 };
	struct pin *free_pin = pin_of(-1);

	if (pin_of(number[1]) || !free_pin) {
		answer->result = free_pin ? -EEXIST : -EMFILE;
		return;
	}
	if (pipe2(free_pin->pipe, O_CLOEXEC | O_NONBLOCK)) {
		answer->result = -errno;
		return;
	}
	answer->result = outcome(vmsplice(free_pin->pipe[1], &byte, 1, 0));
	if (answer->result < 0) {
		unplug(free_pin);
		return;
	}
	answer->result = 0;
	free_pin->page = number[1];
}

static void unpin(const long *number, struct answer *answer)
{
	struct pin *held = pin_of(number[1]);
	unsigned char byte;

	if (!held) {
		answer->result = -ENOENT;
		return;
	}
	if (read(held->pipe[0], &byte, 1) == 1)
		answer->value = byte;
	else
		answer->result = -errno;
	unplug(held);
}

/* ---- processes ---- */

static void fork_process(const long *number, struct answer *answer)
{
	pid_t pid;

	process_expect(number[1]);
	pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	if (!pid)
		process_serve(number[1]);
	answer->result = pid < 0 ? -errno : 0;
	if (pid > 0)
		process_await_start(number[1]);
}

static void exit_process(const long *number, struct answer *answer)
{
	(void)number;
	(void)answer;
	_exit(0);
}

const struct verb process_verbs[] = {
	{ "load", "pa", load },
	{ "store", "pab", store },
	{ "map", "panrk", map },
	{ "unmap", "pan", unmap },
	{ "protect", "panr", protect },
	{ "advise", "panh", advise },
	{ "remap", "pana", remap },
	{ "pin", "pa", pin },
	{ "unpin", "pa", unpin },
	{ "fork", "pc", fork_process },
	{ "exit", "p", exit_process },
	{ NULL, NULL, NULL },
};

/* ---- how they are run ---- */

static void watch(int signal)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(signal, &action, NULL);
}

/* A new process has neither the devices nor the pins of the one that forked it. */
void operation_start(void)
{
	size_t i;

	for (i = 0; i < sizeof(pins) / sizeof(pins[0]); i++) {
		if (started && pins[i].page >= 0)
			unplug(&pins[i]);
		pins[i].page = -1;
	}
	devices_start();
	started = true;
	watch(SIGSEGV);
	watch(SIGBUS);
}

static long microseconds(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_minflt;
}

/* What the measured part uses itself is touched before: its faults would count. */
void operation_run(const struct command *command, struct answer *answer, int lane)
{
	const char *shape = command->verb->shape;
	const char *pages = strchr(shape, 'm'), *value = strchr(shape, 'b');
	long faults, begun;

	memset(answer, 0, sizeof(*answer));
	blank(answer);
	if (pages)
		devices_prepare(lane, command->number[pages - shape], value ? command->number[value - shape] : 0);
	begun = microseconds();
	faults = minor_faults();
	command->verb->run(command->number, answer);
	answer->minor = minor_faults() - faults;
	answer->took = microseconds() - begun;
}

/* What a new thread or process needs for an operation and for a signal is touched. */
void operation_warm(int lane)
{
	volatile unsigned char stack[32 * 1024];
	struct answer unused;
	size_t i;

	for (i = 0; i < sizeof(stack); i += PAGE / 2)
		stack[i] = 1;
	devices_prepare(lane, 1, 0);
	touch(NULL, NULL, &unused);
	microseconds();
	minor_faults();
}
