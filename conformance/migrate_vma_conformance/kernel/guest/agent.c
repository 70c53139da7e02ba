/* SPDX-License-Identifier: MIT */
/* The loop: reads a line, has the command carried out, answers. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

static struct text line, said;

static void add_text(const struct text *text)
{
	text_say(&line, " text=");
	text_quote(&line, text->bytes, text->length);
}

static void refuse(const char *why)
{
	text_say(&line, "0 refused text=");
	text_quote(&line, why, strlen(why));
}

/* ---- commands for processes ---- */

/* What one asks of a process that is not there, or is there already, goes nowhere. */
static const char *misplaced(const struct command *command)
{
	const char *child = strchr(command->verb->shape, 'c');

	if (!process_lives(command->number[0]))
		return "no such process";
	if (child && process_lives(command->number[child - command->verb->shape]))
		return "that process exists";
	return NULL;
}

static void run_alone(char *words)
{
	static struct answer answer;
	struct command command;
	const char *wrong = parse_command(words, &command);

	if (!wrong)
		wrong = misplaced(&command);
	if (wrong) {
		refuse(wrong);
		return;
	}
	processes_run(&command, &answer, 1, false, &said);
	text_answer(&line, &answer);
	if (said.length)
		add_text(&said);
}

/* Two commands of a race that would make the same process. */
static bool twins(const struct command *commands, int count)
{
	int i, j;

	for (i = 0; i < count; i++)
		for (j = 0; j < i; j++)
			if (strchr(commands[i].verb->shape, 'c') && commands[i].verb == commands[j].verb &&
			    commands[i].number[1] == commands[j].number[1])
				return true;
	return false;
}

static void run_race(char *words)
{
	static struct command commands[MOST_TOGETHER];
	static struct answer answers[MOST_TOGETHER];
	const char *wrong = NULL;
	char *end;
	int count = 0, i;

	for (; words && !wrong; words = end) {
		end = strstr(words, " ; ");
		if (end) {
			*end = 0;
			end += 3;
		}
		if (count == MOST_TOGETHER)
			wrong = "too many commands for one race";
		else if (!(wrong = parse_command(words, &commands[count])))
			wrong = misplaced(&commands[count++]);
	}
	for (i = 0; i < count && !wrong; i++)
		if (!strcmp(commands[i].verb->name, "exit"))
			wrong = "exit cannot be raced";
	if (!wrong && twins(commands, count))
		wrong = "two commands make the same process";
	if (wrong) {
		refuse(wrong);
		return;
	}
	processes_run(commands, answers, count, true, &said);
	text_say(&line, "0");
	if (said.length)
		add_text(&said);
	for (i = 0; i < count; i++) {
		text_say(&line, " ; ");
		text_answer(&line, &answers[i]);
	}
}

/* ---- commands for the guest ---- */

static void greet(char *words)
{
	(void)words;
	guest_describe(&said);
	text_say(&line, "%d", VERSION);
	add_text(&said);
}

static void reset(char *words)
{
	(void)words;
	text_say(&line, "%d", processes_reset());
}

static void set_limit(char *words)
{
	long limit;

	if (!words || !number_of(words, &limit) || limit < 1) {
		refuse("a limit is a number of milliseconds");
		return;
	}
	process_limit = limit;
	text_say(&line, "0");
}

static void use_module(char *words)
{
	text_say(&line, "%d", words ? guest_module(words) : -EINVAL);
}

static void read_file(char *words)
{
	int result;

	if (!words || !unquote(words)) {
		refuse("no path");
		return;
	}
	result = guest_read(words, &said);
	text_say(&line, "%d", result);
	add_text(&said);
}

static void put_file(char *words, bool append)
{
	char *path = next_word(&words);

	if (!path || !unquote(path) || !words || !unquote(words))
		refuse("no path, or no text");
	else
		text_say(&line, "%d", guest_write(path, words, append));
}

static void write_file(char *words)
{
	put_file(words, false);
}

static void append_file(char *words)
{
	put_file(words, true);
}

static void execute(char *words)
{
	static char *arguments[64];
	struct answer answer;
	char *word = next_word(&words);
	long seconds;
	int count = 0;

	if (!word || !number_of(word, &seconds)) {
		refuse("no limit");
		return;
	}
	while ((word = next_word(&words)) && count < 63 && unquote(word))
		arguments[count++] = word;
	arguments[count] = NULL;
	if (!count || word) {
		refuse("no program, or too many arguments");
		return;
	}
	guest_execute(seconds, arguments, &answer, &said);
	text_answer(&line, &answer);
	add_text(&said);
}

static const struct {
	const char *name;
	void (*run)(char *words);
} own[] = {
	{ "hello", greet },
	{ "reset", reset },
	{ "limit", set_limit },
	{ "module", use_module },
	{ "read-file", read_file },
	{ "write-file", write_file },
	{ "append-file", append_file },
	{ "execute", execute },
};

/* Adds the answer to `line`, behind the number. */
static void carry_out(char *words)
{
	size_t i, length = strcspn(words, " ");

	for (i = 0; i < sizeof(own) / sizeof(own[0]); i++) {
		if (strlen(own[i].name) == length && !strncmp(words, own[i].name, length)) {
			own[i].run(words[length] ? words + length + 1 : NULL);
			return;
		}
	}
	if (!strncmp(words, "race ", 5))
		run_race(words + 5);
	else
		run_alone(words);
}

/* An answer leaves before the next command begins: so the host knows in which command a guest ended. */
static void send_line(int to)
{
	size_t sent = 0;

	text_say(&line, "\n");
	while (sent < line.length) {
		ssize_t wrote = write(to, line.bytes + sent, line.length - sent);

		if (wrote > 0)
			sent += wrote;
		else if (errno != EINTR && errno != EAGAIN)
			return;
	}
}

int main(void)
{
	char *words;
	long number;
	int wire;

	guest_start();
	processes_start();
	wire = guest_transport();
	while ((words = next_line(wire))) {
		char *word = next_word(&words);

		text_clear(&line);
		text_clear(&said);
		if (!number_of(word, &number) || !words)
			continue;	/* noise of the line before the first command */
		text_say(&line, "%ld ", number);
		carry_out(words);
		send_line(wire);
	}
	fprintf(stderr, "agent: the line has ended\n");
	if (getpid() == 1)
		reboot(RB_AUTOBOOT);	/* which ends the machine: nobody is left who asks */
	return 0;
}
