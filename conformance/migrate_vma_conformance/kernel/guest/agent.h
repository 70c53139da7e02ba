/* SPDX-License-Identifier: MIT */
/*
 * The agent: pid 1 of a guest. It reads one command a line, has a process carry
 * it out, and answers with one line. protocol.py tells what the lines mean.
 *
 *	agent.c		the loop: which command goes to whom
 *	wire.c		lines: read, taken apart, written
 *	process.c	the processes: each serves one seat of the shared memory
 *	operation.c	what a process does: one function for each verb
 *	device.c	what it does with the devices
 *	guest.c		the guest itself: mounts, module, swap, files, programs
 */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define VERSION		1	/* of the protocol, as in protocol.py */

#define PAGE		4096UL
#define ARENA		0x100000000000UL	/* where every process has it */
#define ARENA_PAGES	(1UL << 14)		/* this and the next three: as in commands.py */
#define PROCESSES	16
#define DEVICES		2
#define MOST_PAGES	1024			/* of one device access */
#define MOST_TOGETHER	32			/* commands of one race */
#define MOST_NUMBERS	5			/* arguments of a command that a process carries out */

enum fate { DONE, HUNG, GONE, REFUSED };

/* A command for a process, as numbers in the order of its line. */
struct command {
	const struct verb *verb;
	long number[MOST_NUMBERS];
};

#define UNTOLD (-1L)

/* What is not told is UNTOLD. */
struct answer {
	long result;
	enum fate fate;
	long value, signal, code, cpages, faults, minor, took;
	long data_length;
	unsigned char data[MOST_PAGES];
};

/*
 * One verb that a process carries out. The shape has a letter for each
 * argument: p process, c the process to be, d device, a page, n count of pages,
 * m count of pages of a device access, b byte, v any number, r protection,
 * k kind of mapping, h advice.
 */
struct verb {
	const char *name;
	const char *shape;
	void (*run)(const long *number, struct answer *answer);
};

extern const struct verb process_verbs[], device_verbs[];	/* each ends with a name of NULL */

/* ---- wire.c ---- */

struct text {
	char *bytes;
	size_t length, room;
};

void text_add(struct text *text, const char *bytes, size_t length);
void text_say(struct text *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_quote(struct text *text, const char *bytes, size_t length);
void text_clear(struct text *text);
void text_answer(struct text *text, const struct answer *answer);

char *next_line(int from);
char *next_word(char **rest);
bool unquote(char *word);
bool number_of(const char *word, long *number);
/* NULL, or what is wrong with it. */
const char *parse_command(char *words, struct command *command);
void blank(struct answer *answer);

/* ---- process.c ---- */

extern int arena_file;			/* what mappings of files map; every process has it open */
void processes_start(void);
int processes_reset(void);
bool process_lives(int process);
/*
 * Has the commands carried out, each by the process that its first number names,
 * together (count > 1 or race) or alone. `why` gets the stack of what hangs.
 */
void processes_run(struct command *commands, struct answer *answers, int count, bool race, struct text *why);
extern long process_limit;		/* milliseconds */
/* For fork: before it; in the child, which from then on serves; in the parent. */
void process_expect(int process);
void process_serve(int process) __attribute__((noreturn));
void process_await_start(int process);

/* ---- operation.c ---- */

void operation_start(void);		/* in each new process */
void operation_run(const struct command *command, struct answer *answer, int lane);
void operation_warm(int lane);
void *address_of(long page);
long outcome(long result);		/* of a system call: minus errno where it failed */

/* ---- device.c ---- */

void devices_start(void);		/* in each new process */
void devices_prepare(int lane, long pages, long value);

/* ---- guest.c ---- */

void guest_start(void);
void guest_describe(struct text *text);
int guest_transport(void);
int guest_module(const char *name);
int guest_read(const char *path, struct text *text);
int guest_write(const char *path, const char *text, bool append);
void guest_execute(long seconds, char **words, struct answer *answer, struct text *output);

#endif
