set -eu
jar=/usr/share/java/zookeeper.jar
image=$(echo /apache-zookeeper-*/lib)
if [ -d "$image" ]; then
	classpath=".:$image/*"
	# It logs by logback, which prints all that it is told where it finds no configuration.
	cat >logback.xml <<-END
		<configuration>
		<appender name="out" class="ch.qos.logback.core.ConsoleAppender">
		<encoder><pattern>%date %-5level [%thread] %logger{0}: %msg%n</pattern></encoder>
		</appender>
		<root level="warn"><appender-ref ref="out" /></root>
		</configuration>
	END
elif [ -e "$jar" ]; then
	classpath="$jar:/usr/share/java/slf4j-simple.jar"
else
	echo "no $jar: install the package zookeeper" >&2
	exit 1
fi
mkdir -p data
if [ "$MYID" != 0 ]; then echo "$MYID" >data/myid; fi
printf '%s\n' "$@" >zoo.cfg
# shellcheck disable=SC2086 # several arguments
exec java $JAVA_ARGS -cp "$classpath" org.apache.zookeeper.server.quorum.QuorumPeerMain zoo.cfg
