/* Preload library: programs that look for cards under /sys/class/infiniband* and /dev/infiniband find those of the run.
 * Only these prefixes are touched, and only when SOFT_EFA_DIR is set. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* `path`, or where the run keeps it, in `room`. */
static const char *moved(const char *path, char room[PATH_MAX])
{
	static const char *const prefixes[] = { "/sys/class/infiniband", "/dev/infiniband" };
	const char *dir;

	if (!path || (strncmp(path, "/sys/", 5) && strncmp(path, "/dev/", 5)) || !(dir = getenv("SOFT_EFA_DIR")))
		return path;
	for (size_t i = 0; i < sizeof(prefixes) / sizeof(*prefixes); i++) {
		if (!strncmp(path, prefixes[i], strlen(prefixes[i]))) {
			int length = snprintf(room, PATH_MAX, "%s%s", dir, path);
			return length > 0 && length < PATH_MAX ? room : path;
		}
	}
	return path;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define REDIRECT_OPEN(name)                                              \
	int name(const char *path, int flags, ...)                       \
	{                                                                \
		static int (*next)(const char *, int, ...);              \
		char room[PATH_MAX];                                     \
		mode_t mode = 0;                                         \
		if (flags & (O_CREAT | O_TMPFILE)) {                     \
			va_list list;                                    \
			va_start(list, flags);                           \
			mode = va_arg(list, mode_t);                     \
			va_end(list);                                    \
		}                                                        \
		if (!next)                                               \
			next = NEXT(name);                               \
		return next(moved(path, room), flags, mode);             \
	}
REDIRECT_OPEN(open)
REDIRECT_OPEN(open64)

#define REDIRECT(type, name, parameters, ...)                            \
	type name parameters                                             \
	{                                                                \
		static type(*next) parameters;                           \
		char room[PATH_MAX];                                     \
		if (!next)                                               \
			next = NEXT(name);                               \
		return next(__VA_ARGS__);                                \
	}
REDIRECT(DIR *, opendir, (const char *path), moved(path, room))
REDIRECT(FILE *, fopen, (const char *path, const char *mode), moved(path, room), mode)
REDIRECT(FILE *, fopen64, (const char *path, const char *mode), moved(path, room), mode)
REDIRECT(int, access, (const char *path, int mode), moved(path, room), mode)
REDIRECT(int, stat, (const char *path, struct stat *to), moved(path, room), to)
REDIRECT(int, lstat, (const char *path, struct stat *to), moved(path, room), to)
REDIRECT(int, stat64, (const char *path, struct stat64 *to), moved(path, room), to)
REDIRECT(int, __xstat, (int version, const char *path, struct stat *to), version, moved(path, room), to)
REDIRECT(int, __xstat64, (int version, const char *path, struct stat64 *to), version, moved(path, room), to)
REDIRECT(char *, realpath, (const char *path, char *to), moved(path, room), to)
REDIRECT(char *, __realpath_chk, (const char *path, char *to, size_t size), moved(path, room), to, size)
REDIRECT(ssize_t, readlink, (const char *path, char *to, size_t size), moved(path, room), to, size)
REDIRECT(int, scandir, (const char *path, struct dirent ***list, int (*keep)(const struct dirent *),
			int (*order)(const struct dirent **, const struct dirent **)),
	 moved(path, room), list, keep, order)

int openat(int at, const char *path, int flags, ...)
{
	static int (*next)(int, const char *, int, ...);
	char room[PATH_MAX];
	mode_t mode = 0;

	if (flags & (O_CREAT | O_TMPFILE)) {
		va_list list;
		va_start(list, flags);
		mode = va_arg(list, mode_t);
		va_end(list);
	}
	if (!next)
		next = NEXT(openat);
	return next(at, moved(path, room), flags, mode);
}
#ifdef STATX_TYPE
REDIRECT(int, statx, (int at, const char *path, int flags, unsigned int mask, struct statx *to),
	 at, moved(path, room), flags, mask, to)
#endif
REDIRECT(int, fstatat, (int at, const char *path, struct stat *to, int flags), at, moved(path, room), to, flags)
REDIRECT(int, faccessat, (int at, const char *path, int mode, int flags), at, moved(path, room), mode, flags)
